"""`Cache`: the state of a stack of recurrent layers as a value that can be batched, split, kept and filed."""

from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, Tuple, Union

import torch

from myfla.models.cache_batch import Rows, join_layers, row_index
from myfla.models.cache_file import read_cache, write_cache
from myfla.models.cache_layer import FIELDS, FLALayer
from myfla.models.cache_layout import activation_format, describe, swap_layer, v_first_flags
from myfla.models.cache_memory import own_state
from myfla.models.fla_cache import FLACache
from myfla.models.generation_utils import FLAGenerationMixin
from myfla.models.legacy_cache import LegacyFLACache
from myfla.models.state_tree import tensors_of
from myfla.utils.errors import CacheError, message, value_error

__all__ = ["Cache", "FLACache", "FLAGenerationMixin", "FLALayer", "LegacyFLACache"]


class Cache(FLACache):
    """The state of a stack of layers for N sequences.

    It has the official interface (`FLACache`); recurrent states are ``[N, HV, K, V]``. Tensors in a cache are never
    changed, so that `fork` needs no copies; only in a cache of `in_place` the states are overwritten. Positions with
    padding are counted by ``get_seq_length()``, as in the official cache, and real tokens of each row by ``lengths``;
    the argument ``seen_tokens`` is accepted for compatibility.

    Attributes:
        fingerprint: identifies the model and settings to which the states belong, set by the code that builds the
            model; copies and files keep it.
        inplace: whether layers may overwrite the recurrent states; only if nothing else uses them.

    Example:
        >>> cache = Cache()
        >>> state = cache.update(recurrent_state=torch.zeros(2, 1, 4, 4), offset=3, lengths=torch.tensor([3, 2]))
        >>> cache.get_seq_length(), cache.lengths.tolist()
        (3, [3, 2])
        >>> first, second = cache.unstack()
        >>> Cache.stack([second, first]).lengths.tolist()
        [2, 3]
    """

    fingerprint: Optional[str] = None
    inplace: bool = False
    _groups: Optional[Tuple[int, ...]] = None

    @property
    def batch_size(self) -> Optional[int]:
        """N, or None while no layer has a state."""
        return self._batch()

    @property
    def lengths(self) -> Optional[torch.Tensor]:
        """``[N]`` int64, real tokens of each row in the first layer; None while N is unknown."""
        return self.get_lengths(0)

    def get_lengths(self, layer_idx: int = 0) -> Optional[torch.Tensor]:
        """``[N]`` int64: real tokens of each row that layer ``layer_idx`` has read; None without state."""
        return self.layers[layer_idx].lengths if layer_idx < len(self.layers) else None

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors held."""
        return sum(tensor.numel() * tensor.element_size() for _, tensor in self._tensors())

    # ---- copies -------------------------------------------------------------------------------------------------

    def fork(self) -> "Cache":
        """An independent cache with the same content. Tensors are shared, and never changed."""
        return self._copy(lambda field, tensor: tensor, lambda counts: counts, self._groups)

    def in_place(self) -> "Cache":
        """A copy in separate memory, whose recurrent states are overwritten in decoding: less memory, more speed.

        Every call that has it as an argument advances it, also that of an encoder. Copies (`fork`, `select`, ...) have
        separate memory; only the result of ``cache[i]`` changes with later calls. Calls with autograd, and those with
        more tokens than the recurrent form computes, overwrite nothing.

        Example:
            >>> cache = Cache()
            >>> state = cache.update(recurrent_state=torch.zeros(1, 1, 4, 4))
            >>> cache.in_place().inplace
            True
        """
        new = self._copy(own_state, lambda counts: counts, self._groups)
        new.inplace = True
        return new

    def rollback(self, fork: "Cache") -> "Cache":
        """Restore the state of this cache when ``fork`` was made; the fork can be used again.

        Returns:
            This cache.
        """
        if not isinstance(fork, Cache):
            raise CacheError(message("Cache.rollback", "fork", "must be a Cache", type(fork).__name__))
        if fork.fingerprint != self.fingerprint:
            rule = f"must be that of this model, {self.fingerprint!r}"
            raise CacheError(message("Cache.rollback", "fingerprint", rule, fork.fingerprint))
        again = fork.in_place() if self.inplace else fork.fork()
        self.layers, self._groups, self._seen_tokens = again.layers, again._groups, again._seen_tokens
        return self

    def to(self, device: Any = None, dtype: Optional[torch.dtype] = None) -> "Cache":
        """A copy on another device or in another dtype.

        Args:
            device: a device, its name, or (as in torch) a dtype.
            dtype: format of the activations kept. Recurrent states are sums and stay wide: float64 for float64,
                else float32.
        """
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        if dtype is not None and not dtype.is_floating_point:
            raise value_error("Cache.to", "dtype", "must be a floating-point format", dtype)

        def move(field: str, tensor: torch.Tensor) -> torch.Tensor:
            wanted = activation_format(field, dtype) if tensor.is_floating_point() else None
            return tensor.to(device=device or tensor.device, dtype=wanted or tensor.dtype)

        return self._copy(move, lambda counts: counts.to(device or counts.device), self._groups)

    def detach(self) -> "Cache":
        """A copy that no gradient flows through."""
        return self._copy(lambda field, tensor: tensor.detach(), lambda counts: counts, self._groups)

    # ---- rows ---------------------------------------------------------------------------------------------------

    def select(self, rows: Rows) -> "Cache":
        """A cache of the given rows, in the given order.

        Args:
            rows: integers, a bool mask ``[N]``, a slice, or one integer (which gives a batch of 1).
        """
        return self._select("Cache.select", rows)

    def reorder(self, rows: Rows) -> "Cache":
        """As `select`, for exactly N rows: row ``rows[i]`` becomes row i (beam search)."""
        index = row_index("Cache.reorder", rows, self.batch_size)
        if self.batch_size is not None and len(index) != self.batch_size:
            rule = f"must be {self.batch_size} numbers"
            raise CacheError(message("Cache.reorder", "rows", rule, len(index), "use select"))
        return self._select("Cache.reorder", index)

    def repeat(self, repeats: int) -> "Cache":
        """A cache with every row ``repeats`` times, side by side."""
        new = self.fork()
        new.batch_repeat_interleave(repeats)
        new._groups = None
        return new

    @classmethod
    def stack(cls, caches: Sequence["Cache"]) -> "Cache":
        """One cache with the rows of several ``caches``, in order, so that sessions become one batch.

        An empty cache counts as one row of zeros (or as many as it has lengths).

        Raises:
            CacheError: there is no cache, or they differ in model, layers, head sizes, dtypes or devices.
        """
        caches = [cache.fork() if getattr(cache, "inplace", False) else cache for cache in caches]
        if not caches or not all(isinstance(cache, Cache) for cache in caches):
            got = [type(cache).__name__ for cache in caches]
            raise CacheError(message("Cache.stack", "caches", "must be at least one Cache", got))
        prints = {cache.fingerprint for cache in caches if cache.layers}
        if len(prints) > 1:
            raise CacheError(message("Cache.stack", "fingerprint", "must be of one model", sorted(map(str, prints))))
        depth = max(len(cache) for cache in caches)
        if any(len(cache) not in (0, depth) for cache in caches):
            raise CacheError(message("Cache.stack", "layers", "must be equal in all caches", [len(c) for c in caches]))
        sizes = tuple(1 if cache.batch_size is None else cache.batch_size for cache in caches)
        new = cls()
        new.fingerprint = next(iter(prints), caches[0].fingerprint)
        for i in range(depth):
            new.layers.append(join_layers([c.layers[i] if c.layers else FLALayer() for c in caches], sizes, i))
        new._groups = sizes
        return new

    def unstack(self, sizes: Optional[Sequence[int]] = None, copy: bool = True) -> List["Cache"]:
        """The caches that `stack` was given, each with its own count of tokens.

        Args:
            sizes: rows of each; as they were stacked if not given, or one row each if they were not stacked or the
                rows were picked since.
            copy: give each its own memory, so that one that is kept does not keep the whole batch.
        """
        batch = self.batch_size
        if batch is None:
            return [self._copy(lambda field, tensor: tensor, lambda counts: counts, None) for _ in self._groups or (1,)]
        sizes = tuple(sizes) if sizes is not None else self._groups or (1,) * batch
        if sum(sizes) != batch or any(size < 0 for size in sizes):
            raise CacheError(message("Cache.unstack", "sizes", f"must add up to the batch size {batch}", list(sizes)))
        out, start = [], 0
        for size in sizes:
            out.append(self._narrow(start, size, copy))
            start += size
        return out

    # ---- files and other libraries --------------------------------------------------------------------------------

    def save(self, path: Union[str, Path], fingerprint: Optional[str] = None) -> None:
        """Write a safetensors file, atomically, with format version, state layout and fingerprint.

        Args:
            path: the file.
            fingerprint: used instead of this cache's.
        """
        about = {"fingerprint": self.fingerprint if fingerprint is None else fingerprint,
                 "groups": self._groups, "seen_tokens": self._seen_tokens}
        write_cache(path, self.layers, about)

    @classmethod
    def load(
        cls,
        path: Union[str, Path],
        device: Any = "cpu",
        fingerprint: Optional[str] = None,
        layers: Optional[int] = None,
        batch: Optional[int] = None,
        dtype: Optional[torch.dtype] = None,
    ) -> "Cache":
        """Read a cache from a file of `save`.

        Args:
            path: the file.
            device: the device of the tensors.
            fingerprint, layers, batch, dtype: requirements that the cache must meet; see `require`.

        Raises:
            CacheError: the file is missing, damaged or foreign, or a requirement is not met.
        """
        cache = cls()
        cache.layers, about = read_cache(path)
        cache.fingerprint, cache._seen_tokens = about.get("fingerprint"), int(about.get("seen_tokens", 0))
        cache._groups = tuple(about["groups"]) if about.get("groups") else None
        cache.require(f"Cache.load({str(path)!r})", fingerprint, layers, batch, dtype)
        return cache if torch.device(device).type == "cpu" else cache.to(device)

    def require(
        self,
        who: str,
        fingerprint: Optional[str] = None,
        layers: Optional[int] = None,
        batch: Optional[int] = None,
        dtype: Optional[torch.dtype] = None,
    ) -> None:
        """Raise `CacheError` for the first requirement that is not met.

        Args:
            who: the caller, for the message.
            fingerprint: of the model the cache must belong to.
            layers: number of layers.
            batch: number of rows.
            dtype: format of the model's activations; recurrent states must have the accumulation format of it.
        """
        facts = (
            ("fingerprint", f"must be that of the model, {fingerprint!r}", fingerprint, self.fingerprint),
            ("layers", f"must be {layers}", layers, len(self.layers)),
            ("batch", f"must be {batch}", batch, self.batch_size),
        )
        for field, rule, wanted, got in facts:
            if wanted is not None and wanted != got:
                raise CacheError(message(who, field, rule, got, "the cache belongs to another model or batch"))
        for path, tensor in self._tensors() if dtype is not None else ():
            field = path.split(".")[1]
            if field in FIELDS and tensor.is_floating_point() and tensor.dtype != activation_format(field, dtype):
                rule = f"must be {activation_format(field, dtype)} for a model in {dtype}"
                raise CacheError(message(who, f"dtype of {path}", rule, tensor.dtype, f"use cache.to(dtype={dtype})"))

    @classmethod
    def from_fla(
        cls, past_key_values: Any, state_v_first: Union[bool, Sequence[bool]] = True, seen_tokens: Optional[int] = None
    ) -> "Cache":
        """A cache of flash-linear-attention 0.6.0, whose GatedDeltaNet keeps its states as ``[N, HV, V, K]``.

        Args:
            past_key_values: an official cache, or its ``to_legacy_cache()``: state dicts, layer by layer.
            state_v_first: whether recurrent states are V-first (GatedDeltaNet) or not (RWKV-7); for mixed models
                one value per layer. It cannot be seen from a state with K = V.
            seen_tokens: positions counted; asked of the official cache if not given, else 0.
        """
        if isinstance(past_key_values, FLACache):
            rule, got = "must be a cache of flash-linear-attention", "one of this library"
            raise CacheError(message("Cache.from_fla", "past_key_values", rule, got, "use it as it is"))
        states = list(past_key_values)
        flags = v_first_flags("Cache.from_fla", state_v_first, len(states))
        count = getattr(past_key_values, "get_seq_length", lambda layer_idx: 0)
        cache = cls()
        for i, state in enumerate(states):
            layer = cls.from_legacy_cache([state]).layers[0]
            layer._seen_tokens = int(count(i) if seen_tokens is None else seen_tokens)
            cache.layers.append(swap_layer("Cache.from_fla", layer, i) if flags[i] else layer)
        return cache

    def to_fla(self, state_v_first: Union[bool, Sequence[bool]] = True) -> Tuple[Optional[Dict[str, Any]], ...]:
        """State dicts for ``fla.models.utils.Cache.from_legacy_cache(dicts, seen_tokens=cache.get_seq_length())``.

        Args:
            state_v_first: as in `from_fla`.
        """
        flags = v_first_flags("Cache.to_fla", state_v_first, len(self))
        given = self.fork().layers if self.inplace else self.layers
        layers = [swap_layer("Cache.to_fla", layer, i) if flags[i] else layer for i, layer in enumerate(given)]
        return tuple(None if layer.state is None else dict(layer.state) for layer in layers)

    def to_legacy_cache(self) -> Tuple[Optional[Dict[str, Any]], ...]:
        """The layers' states as a tuple of dicts."""
        return super(Cache, self.fork() if self.inplace else self).to_legacy_cache()

    # ---- within ---------------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        return describe(self)

    def _tensors(self) -> Iterable[Tuple[str, torch.Tensor]]:
        for i, layer in enumerate(self.layers):
            for found in tensors_of({**(layer.state or {}), "pads": layer._pads, "late": layer._late}, str(i)):
                yield found

    def _copy(self, on_state: Callable, on_counts: Callable, groups: Optional[Tuple[int, ...]]) -> "Cache":
        new = type(self)(seen_tokens=self._seen_tokens)
        if self.inplace:
            given, on_state = on_state, lambda field, tensor: own_state(field, given(field, tensor), tensor)
        new.layers = [layer.map(on_state, on_counts) for layer in self.layers]
        new.fingerprint, new._groups = self.fingerprint, groups
        return new

    def _pick(self, who: str, rows: Rows) -> None:
        super()._pick(who, rows)
        self._groups = None
        for layer in self.layers:
            layer.rebase()

    def _select(self, who: str, rows: Rows) -> "Cache":
        new = self.fork()
        new._pick(who, rows)
        return new

    def _narrow(self, start: int, size: int, copy: bool) -> "Cache":
        def cut(tensor: torch.Tensor) -> torch.Tensor:
            part = tensor.narrow(0, start, size)
            return part.clone() if copy else part

        new = self._copy(lambda field, tensor: cut(tensor), cut, None)
        for layer in new.layers:
            layer.rebase()
        return new

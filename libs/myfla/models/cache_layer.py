"""What a cache holds for one layer: its states, the tokens counted, and how many of those each row really had."""

import functools
from typing import Any, Callable, Dict, Optional, Sequence, Tuple

import torch

from myfla.models.attention_state import append_tokens, newest_tokens
from myfla.models.state_tree import map_tensors, tensors_of
from myfla.utils.errors import CacheError, message, refuse_unknown, value_error

__all__ = ["FIELDS", "FLALayer"]

FIELDS = ("recurrent_state", "attn_state", "conv_state", "ffn_state")
_BATCHED = ("recurrent_state", "conv_state", "ffn_state")


class FLALayer:
    """The slot of one layer in a `Cache`. Every update makes a new ``state`` dict, so that an earlier one does not
    change; tensors are never changed.

    Attributes:
        state: dict with ``recurrent_state`` (``[N, HV, K, V]``), ``conv_state``, ``ffn_state`` and ``attn_state``,
            each a tensor, a tuple of tensors or None. Before the first update and after `reset`, ``state`` is None.
        window_size: largest number of positions in ``attn_state``, or None.
        is_initialized: whether the slot was updated.

    Example:
        >>> layer = FLALayer()
        >>> state = layer.update(recurrent_state=torch.zeros(2, 1, 4, 4), offset=3)
        >>> layer.get_seq_length(), layer.lengths.tolist()
        (3, [3, 3])
    """

    is_compileable = False
    is_sliding = False

    def __init__(self) -> None:
        self.state: Optional[Dict[str, Any]] = None
        self.window_size: Optional[int] = None
        self.is_initialized = False
        self._seen_tokens = 0
        # [N] int64 each, None for all zeros: how many of the counted positions were no tokens of the row, and how
        # many of them were counted by other rows before this one joined them.
        self._pads: Optional[torch.Tensor] = None
        self._late: Optional[torch.Tensor] = None
        self._home: Optional[torch.device] = None  # where `prefetch` brings the states back to

    @property
    def batch_size(self) -> Optional[int]:
        """N, or None without a state."""
        if self.state is None:
            return None
        first = self.state.get(FIELDS[0])
        if isinstance(first, torch.Tensor):
            return first.shape[0]
        for field in FIELDS:
            for _, tensor in tensors_of(self.state.get(field)):
                return tensor.shape[0]
        return None

    @property
    def lengths(self) -> Optional[torch.Tensor]:
        """``[N]`` int64: number of real tokens of each row, without padding; None if N is not known."""
        if self._pads is not None:
            return self._seen_tokens - self._pads
        batch = self.batch_size
        return None if batch is None else torch.full((batch,), self._seen_tokens, dtype=torch.int64)

    @property
    def has_pads(self) -> bool:
        """Whether some of the counted positions may have been padding."""
        return self._pads is not None

    def update(
        self,
        *,
        recurrent_state: Any = None,
        attn_state: Optional[Sequence[torch.Tensor]] = None,
        conv_state: Any = None,
        ffn_state: Any = None,
        offset: Optional[int] = 1,
        cache_kwargs: Optional[Dict[str, Any]] = None,
        lengths: Optional[torch.Tensor] = None,
        A_state: Any = None,
        **kwargs: Any,
    ) -> Dict[str, Any]:
        """Store states and count tokens; arguments, result and errors as for `Cache.update`."""
        refuse_unknown("Cache.update", kwargs, (*FIELDS, "layer_idx", "offset", "cache_kwargs", "lengths"))
        if attn_state is not None and not isinstance(attn_state, (tuple, list)):
            kind = type(attn_state).__name__
            raise value_error("Cache.update", "attn_state", "must be a tuple or list of tensors", kind)
        offset = 1 if offset is None else offset
        given = dict(recurrent_state=recurrent_state, conv_state=conv_state, ffn_state=ffn_state)
        given = {field: value for field, value in given.items() if value is not None}
        self._check_batch(given)
        state = {**dict.fromkeys(FIELDS), **(self.state or {}), **given}
        self.window_size = (cache_kwargs or {}).get("window_size", self.window_size)
        self.is_sliding = self.window_size is not None
        if attn_state and attn_state[0] is not None:
            offset = attn_state[0].shape[1]
            state["attn_state"] = self._append(state["attn_state"], attn_state, lengths)
        self.state = state
        self._count(offset, lengths)
        self.is_initialized = True
        return state

    def get_seq_length(self, cache_position: Any = None) -> int:
        """Number of positions so far, with padding, as in the official cache; ``cache_position`` is ignored."""
        return self._seen_tokens

    def get_max_length(self) -> int:
        """-1: there is no bound."""
        return -1

    def get_max_cache_shape(self) -> int:
        """-1: there is no bound."""
        return -1

    def get_mask_sizes(self, query_length: int) -> Tuple[int, int]:
        """``(keys that an attention mask must cover, position of the first)`` for ``query_length`` new tokens."""
        cached = self._seen_tokens
        if self.window_size is not None:
            cached = min(cached, self.window_size - 1)
        return cached + query_length, self._seen_tokens - cached

    def reset(self) -> None:
        """Forget everything."""
        self.state, self.is_initialized = None, False
        self._seen_tokens, self._pads, self._late = 0, None, None

    def offload(self) -> None:
        """Move the states to the CPU's memory, until `prefetch` brings them back."""
        tensors = [] if self.state is None else [t for value in self.state.values() for _, t in tensors_of(value)]
        if tensors and tensors[0].device.type != "cpu":
            self._home = tensors[0].device
        self._move(torch.device("cpu"))

    def prefetch(self) -> None:
        """Move the states to where they were before `offload`."""
        if self._home is not None:
            self._move(self._home)

    def crop_length(self, max_length: int) -> int:
        """The length after `crop` to ``max_length`` positions.

        Raises:
            NotImplementedError: shortening would need states that were not kept.
        """
        if max_length < 0:
            max_length = max(0, self._seen_tokens + max_length)
        if max_length >= self._seen_tokens:
            return self._seen_tokens
        if self.state is not None and any(self.state[field] is not None for field in _BATCHED):
            raise NotImplementedError(
                "Cache.crop: a recurrent state cannot be taken back; keep cache.fork() and use cache.rollback(fork)"
            )
        if self.window_size is not None and self._seen_tokens > self.window_size:
            raise NotImplementedError("Cache.crop: tokens that left the attention window cannot be brought back")
        return max_length

    def crop(self, max_length: int) -> None:
        """Keep only the first ``max_length`` positions of an attention state."""
        length = self.crop_length(max_length)
        if self.state is not None and self.state["attn_state"] is not None:
            self.state = dict(self.state, attn_state=tuple(t[:, :length] for t in self.state["attn_state"]))
        self._seen_tokens = length

    def map(self, on_state: Callable[[str, torch.Tensor], torch.Tensor],
            on_counts: Callable[[torch.Tensor], torch.Tensor]) -> "FLALayer":
        """A copy with every tensor replaced: states by ``on_state(field, tensor)``, counts by ``on_counts``."""
        new = FLALayer()
        new.window_size, new.is_sliding = self.window_size, self.is_sliding
        new.is_initialized, new._seen_tokens, new._home = self.is_initialized, self._seen_tokens, self._home
        if self.state is not None:
            new.state = {
                field: map_tensors(functools.partial(on_state, field), value)
                for field, value in self.state.items()
            }
        new._pads = None if self._pads is None else on_counts(self._pads)
        new._late = None if self._late is None else on_counts(self._late)
        return new

    def rebase(self) -> None:
        """Count from the row that began first, after rows that had begun before it were taken out."""
        if self._late is None or self._pads is None:
            return
        shift = int(self._late.min()) if self._late.numel() else 0
        self._seen_tokens -= shift
        if self.state is not None and self.state["attn_state"] is not None:
            shorter = tuple(newest_tokens(t, self._seen_tokens) for t in self.state["attn_state"])
            self.state = dict(self.state, attn_state=shorter)
        self._late, self._pads = self._late - shift, self._pads - shift
        self._late = self._late if bool(self._late.any()) else None
        self._pads = self._pads if bool(self._pads.any()) else None

    def _move(self, device: torch.device) -> None:
        if self.state is not None:
            self.state = {
                field: map_tensors(lambda t: t.to(device, non_blocking=True), value)
                for field, value in self.state.items()
            }  # fmt: skip

    def _check_batch(self, given: Dict[str, Any]) -> None:
        batch = self.batch_size
        for field, value in given.items():
            if _have_rows(value, batch):
                continue
            for path, tensor in tensors_of(value, field):
                if tensor.dim() == 0:
                    raise CacheError(message("Cache.update", path, "must have the batch as its first axis", "a scalar"))
                batch = tensor.shape[0] if batch is None else batch
                if tensor.shape[0] != batch:
                    rule = f"must have this layer's batch size {batch}"
                    hint = "call reset(), or select the rows that continue"
                    raise CacheError(message("Cache.update", path, rule, tensor.shape[0], hint))

    def _append(
        self, cached: Optional[Sequence[torch.Tensor]], new: Sequence[torch.Tensor], added: Optional[torch.Tensor]
    ) -> Tuple[torch.Tensor, ...]:
        window = self.window_size
        joined = append_tokens(cached, new, added)
        return joined if window is None else tuple(newest_tokens(t, window) for t in joined)

    def _count(self, offset: int, lengths: Optional[torch.Tensor]) -> None:
        if lengths is not None:
            skipped = offset - self._checked(lengths)
            before = self._pads
            self._pads = skipped if before is None else before.to(skipped.device) + skipped
        self._seen_tokens += offset

    def _checked(self, lengths: torch.Tensor) -> torch.Tensor:
        batch = self.batch_size
        ok = isinstance(lengths, torch.Tensor) and not lengths.is_floating_point() and lengths.dim() == 1
        if not ok or (batch is not None and lengths.shape[0] != batch):
            got = f"{lengths.dtype} {list(lengths.shape)}" if isinstance(lengths, torch.Tensor) else lengths
            size = "N" if batch is None else batch
            raise value_error("Cache.update", "lengths", f"must be an integer tensor [{size}], one count per row", got)
        return lengths.detach().to(torch.int64)


def _have_rows(value: Any, rows: Optional[int]) -> bool:
    """Whether a state is a tensor, or a tuple of tensors, with this number of rows; no other structure is read."""
    for tensor in value if type(value) is tuple else (value,):
        if not isinstance(tensor, torch.Tensor) or tensor.dim() == 0 or tensor.shape[0] != rows:
            return False
    return True

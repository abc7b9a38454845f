"""The official cache protocol: layers, their states, and counted tokens."""

from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple, Union

import torch

from myfla.models.cache_batch import Rows, row_index
from myfla.models.cache_layer import FIELDS, FLALayer
from myfla.utils.errors import CacheError, message, refuse_unknown, value_error

__all__ = ["FLACache"]

_UPDATE = (*FIELDS, "layer_idx", "offset", "cache_kwargs", "lengths", "A_state")


class FLACache:
    """States of a stack of layers with the interface of flash-linear-attention 0.6.0, without transformers.

    An empty cache is false in a boolean context: write ``if cache is not None``.

    Args:
        seen_tokens: accepted for compatibility; tokens are counted for each layer.

    Attributes:
        layers: one `FLALayer` per layer.

    Example:
        >>> cache = FLACache()
        >>> states = cache.update(recurrent_state=torch.zeros(2, 4, 8, 8), layer_idx=0, offset=3)
        >>> cache.get_seq_length(), cache[0]["recurrent_state"].shape
        (3, torch.Size([2, 4, 8, 8]))
    """

    is_compileable = False

    def __init__(self, seen_tokens: int = 0, **kwargs: Any) -> None:
        if kwargs.pop("offloading", False):
            raise NotImplementedError("Cache: offloading is not supported; use cache.to('cpu') and cache.to(device)")
        refuse_unknown("Cache", kwargs, ("seen_tokens", "offloading"), ("offload_only_non_sliding",))
        self.layers: List[FLALayer] = []
        self._seen_tokens = int(seen_tokens)

    def update(
        self,
        recurrent_state: Any = None,
        attn_state: Optional[Sequence[torch.Tensor]] = None,
        conv_state: Any = None,
        ffn_state: Any = None,
        layer_idx: int = 0,
        offset: Optional[int] = 1,
        cache_kwargs: Optional[Dict[str, Any]] = None,
        **kwargs: Any,
    ) -> Dict[str, Any]:
        """Store new states of one layer and count its new tokens. States that are not given do not change.

        Args:
            recurrent_state: ``[N, HV, K, V]``, float32 (float64).
            attn_state: tuple of ``[B, T, ...]`` tensors, appended along the second axis.
            conv_state: tensor or tuple of tensors ``[N, ...]``.
            ffn_state: ``[N, hidden_size]``.
            layer_idx: number of the layer; missing layers are made.
            offset: number of new positions, padding included; None counts as 1. With ``attn_state`` its length counts.
            cache_kwargs: ``{"window_size": int}`` cuts ``attn_state`` to its last positions.
            lengths: (keyword) int64 ``[N]``, how many of the new positions were real tokens of each row; all of
                them if not given.
            A_state: (keyword) accepted and ignored, as an older version had it.

        Returns:
            The layer's state, a dict with ``recurrent_state``, ``attn_state``, ``conv_state``, ``ffn_state``.

        Raises:
            TypeError: an unknown keyword.
            CacheError: states of another batch size than the layer has.
        """
        refuse_unknown("Cache.update", kwargs, _UPDATE, ("lengths", "A_state"))
        if isinstance(layer_idx, bool) or not isinstance(layer_idx, int) or layer_idx < 0:
            raise value_error("Cache.update", "layer_idx", "must be an integer from 0", layer_idx)
        while len(self.layers) <= layer_idx:
            self.layers.append(FLALayer())
        return self.layers[layer_idx].update(
            recurrent_state=recurrent_state, attn_state=attn_state, conv_state=conv_state, ffn_state=ffn_state,
            offset=offset, cache_kwargs=cache_kwargs, **kwargs,
        )

    def __getitem__(self, layer_idx: int) -> Optional[Dict[str, Any]]:
        """The state of one layer; None if it was reset."""
        if layer_idx >= len(self.layers):
            raise KeyError(f"Cache: layer {layer_idx} is not there; it has {len(self.layers)} layers")
        return self.layers[layer_idx].state

    def __iter__(self) -> Iterator[Optional[Dict[str, Any]]]:
        for layer in self.layers:
            yield layer.state

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def is_initialized(self) -> bool:
        """Whether every layer, of at least one, was updated."""
        return bool(self.layers) and all(layer.is_initialized for layer in self.layers)

    @property
    def is_sliding(self) -> List[bool]:
        """For each layer, whether it has attention with a sliding window."""
        return [layer.is_sliding for layer in self.layers]

    def offload(self, layer_idx: int, only_non_sliding: bool = True) -> None:
        """Move the states of layer ``layer_idx`` to the CPU's memory; with ``only_non_sliding`` not if it has a sliding
        window."""
        if not (only_non_sliding and self.layers[layer_idx].is_sliding):
            self.layers[layer_idx].offload()

    def prefetch(self, layer_idx: int, only_non_sliding: bool = True) -> None:
        """Move the states of layer ``layer_idx`` back; ``only_non_sliding`` as for `offload`."""
        if layer_idx < len(self.layers) and not (only_non_sliding and self.layers[layer_idx].is_sliding):
            self.layers[layer_idx].prefetch()

    def get_seq_length(self, layer_idx: Optional[int] = 0, cache_position: Any = None) -> int:
        """Number of positions, padding included, that layer ``layer_idx`` has counted; 0 if it does not exist.
        ``cache_position`` is accepted for compatibility and ignored. """
        layer_idx = layer_idx or 0
        return self.layers[layer_idx].get_seq_length() if layer_idx < len(self.layers) else 0

    def get_max_length(self, layer_idx: int = 0) -> int:
        """The largest length of layer ``layer_idx``: -1, because there is no limit."""
        return -1

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        """The largest length of layer ``layer_idx``: -1, because there is no limit."""
        return -1

    def get_mask_sizes(self, query_length: Union[int, torch.Tensor], layer_idx: int = 0) -> Tuple[int, int]:
        """``(number of keys that a mask must cover, position of the first)`` in layer ``layer_idx``. ``query_length``
        is the number of new tokens, or a tensor of their positions. """
        query_length = query_length.shape[0] if isinstance(query_length, torch.Tensor) else query_length
        if layer_idx >= len(self.layers):
            return query_length, 0
        return self.layers[layer_idx].get_mask_sizes(query_length)

    def reset(self) -> None:
        """Forget all states and counts; the layers stay."""
        for layer in self.layers:
            layer.reset()
        self._seen_tokens = 0

    def reorder_cache(self, beam_idx: Rows) -> None:
        """Make row ``beam_idx[i]`` the new row i, in every layer."""
        self._pick("Cache.reorder_cache", beam_idx)

    def batch_select_indices(self, indices: Rows) -> None:
        """Keep the rows ``indices``, in this order, in every layer."""
        self._pick("Cache.batch_select_indices", indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row ``repeats`` times, next to each other."""
        if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 1:
            raise value_error("Cache.batch_repeat_interleave", "repeats", "must be a positive integer", repeats)
        self._map(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def crop(self, max_length: int) -> None:
        """Shorten attention states to ``max_length`` positions; see `FLALayer.crop_length` for when this is
        possible."""
        for layer in self.layers:
            layer.crop_length(max_length)
        for layer in self.layers:
            layer.crop(max_length)

    def to_legacy_cache(self) -> Tuple[Optional[Dict[str, Any]], ...]:
        """The layers' states as a tuple of dicts."""
        return tuple(None if state is None else dict(state) for state in self)

    @classmethod
    def from_legacy_cache(cls, past_key_values: Any = None, seen_tokens: int = 0, **kwargs: Any) -> "FLACache":
        """A cache from a list or tuple of state dicts; a cache is returned unchanged.

        Args:
            past_key_values: state dicts, an object whose ``states`` are such, a cache, or None for an empty one.
            seen_tokens: positions that every layer counts as seen.
        """
        if isinstance(past_key_values, cls):
            return past_key_values
        if hasattr(past_key_values, "states"):
            seen_tokens, past_key_values = past_key_values.get_seq_length(), past_key_values.states
        if past_key_values is not None and not isinstance(past_key_values, (list, tuple)):
            rule, got = "must be a sequence of state dicts", type(past_key_values).__name__
            raise TypeError(message("Cache.from_legacy_cache", "past_key_values", rule, got))
        cache = cls(seen_tokens=seen_tokens, **kwargs)
        for i, state in enumerate(past_key_values or ()):
            layer = FLALayer()
            if state is not None:
                layer.update(**_known_fields(state, i), offset=0)
            layer._seen_tokens = int(seen_tokens)
            cache.layers.append(layer)
        return cache

    def _batch(self) -> Optional[int]:
        for layer in self.layers:
            if layer.batch_size is not None:
                return layer.batch_size
        return None

    def _pick(self, who: str, rows: Rows) -> None:
        index = row_index(who, rows, self._batch())
        self._map(lambda tensor: tensor.index_select(0, index.to(tensor.device)))

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.layers = [layer.map(lambda field, tensor: function(tensor), function) for layer in self.layers]


def _known_fields(state: Dict[str, Any], layer_idx: int) -> Dict[str, Any]:
    known = (*FIELDS, "A_state")
    for field in state:
        if field not in known:
            raise CacheError(message("Cache", f"layer {layer_idx}", f"may hold {', '.join(known)}", field))
    return dict(state)

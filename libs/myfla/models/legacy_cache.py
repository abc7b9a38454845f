"""The older official cache, whose layers share one token counter."""

from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import torch

from myfla.models.cache_layer import FLALayer

__all__ = ["LegacyFLACache"]


class LegacyFLACache:
    """A list of state dicts and one count of tokens, which the last layer advances. For code that needs this class.

    Args:
        seen_tokens: initial count of tokens.

    Attributes:
        states: one dict for each layer.

    Example:
        >>> cache = LegacyFLACache()
        >>> state = cache.update(recurrent_state=torch.zeros(1, 1, 2, 2), layer_idx=0, offset=3)
        >>> len(cache), cache.get_seq_length()
        (1, 3)
    """

    is_compileable = False

    def __init__(self, seen_tokens: int = 0) -> None:
        self.states: List[Dict[str, Any]] = []
        self._seen_tokens = seen_tokens

    def __getitem__(self, layer_idx: int) -> Dict[str, Any]:
        if layer_idx >= len(self.states):
            raise KeyError(f"LegacyFLACache: layer {layer_idx} is not there; it has {len(self.states)} layers")
        return self.states[layer_idx]

    def __iter__(self) -> Iterator[Dict[str, Any]]:
        return iter(self.states)

    def __len__(self) -> int:
        return len(self.states)

    def update(
        self,
        recurrent_state: Any = None,
        attn_state: Optional[Sequence[torch.Tensor]] = None,
        conv_state: Any = None,
        ffn_state: Any = None,
        layer_idx: int = 0,
        offset: Optional[int] = 1,
        cache_kwargs: Optional[Dict[str, Any]] = None,
    ) -> Dict[str, Any]:
        """Store states of a layer: ``recurrent_state``, ``attn_state``, ``conv_state``, ``ffn_state``, ``layer_idx``,
        ``offset`` and ``cache_kwargs`` as for `FLACache.update`; the count is shared by all layers."""
        offset = 1 if offset is None else offset
        new = layer_idx >= len(self.states)
        if new:
            self._seen_tokens += offset if layer_idx == 0 else 0
            self.states.append({})
            layer_idx = len(self.states) - 1
        elif layer_idx == len(self.states) - 1:
            self._seen_tokens += offset
        layer = FLALayer()
        layer.state = self.states[layer_idx] or None
        self.states[layer_idx] = layer.update(
            recurrent_state=recurrent_state, attn_state=attn_state, conv_state=conv_state, ffn_state=ffn_state,
            cache_kwargs=cache_kwargs,
        )
        return self.states[layer_idx]

    def get_seq_length(self, layer_idx: Optional[int] = 0) -> int:
        """The shared count; 0 if layer ``layer_idx`` does not exist."""
        return 0 if len(self.states) <= (layer_idx or 0) else self._seen_tokens

    def get_max_cache_shape(self) -> Optional[int]:
        """The largest length: None, because there is no limit."""
        return None

    def reset(self) -> None:
        """Remove all states and set the count to 0."""
        self.states, self._seen_tokens = [], 0

    def to_legacy_cache(self) -> Tuple[Dict[str, Any], ...]:
        """The state dicts as a tuple."""
        return tuple(self.states)

    @classmethod
    def from_legacy_cache(cls, past_key_values: Optional[Sequence[Dict[str, Any]]] = None,
                          seen_tokens: int = 0) -> "LegacyFLACache":
        """A cache from state dicts ``past_key_values``, with the count ``seen_tokens``."""
        cache = cls(seen_tokens)
        if isinstance(past_key_values, (list, tuple)):
            cache.states.extend(past_key_values)
        return cache

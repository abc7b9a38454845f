"""The layout of a cache's states: in words, and converted to that of fla 0.6's GatedDeltaNet, ``[N, HV, V, K]``."""

from typing import Any, Optional, Sequence, Union

import torch

from myfla.models.cache_layer import FLALayer
from myfla.models.state_tree import tensors_of
from myfla.utils.errors import CacheError, message

__all__ = ["activation_format", "describe", "swap_layer", "v_first_flags"]


def v_first_flags(who: str, state_v_first: Union[bool, Sequence[bool]], layers: int) -> Sequence[bool]:
    """One flag per layer from one for all or one for each."""
    if isinstance(state_v_first, bool):
        return [state_v_first] * layers
    if len(state_v_first) != layers:
        raise CacheError(message(who, "state_v_first", f"must be one bool, or {layers}, one per layer", state_v_first))
    return [bool(flag) for flag in state_v_first]


def swap_layer(who: str, layer: FLALayer, index: int) -> FLALayer:
    """A copy of the layer with the last two axes of its recurrent state exchanged."""

    def turn(field: str, tensor: torch.Tensor) -> torch.Tensor:
        if field != "recurrent_state":
            return tensor
        if tensor.dim() != 4:
            raise CacheError(message(who, f"layer {index} recurrent_state", "must have 4 axes", list(tensor.shape)))
        return tensor.transpose(-1, -2).contiguous()

    return layer.map(turn, lambda counts: counts)


def activation_format(field: str, dtype: Optional[torch.dtype]) -> Optional[torch.dtype]:
    """The dtype of a state in a model that computes in ``dtype``: recurrent states are sums and stay wide."""
    if field != "recurrent_state" or dtype in (None, torch.float64):
        return dtype
    return torch.float32


def describe(cache: Any) -> str:
    """A `Cache` in words: a line for each layer."""
    count = f"{len(cache)} layer{'' if len(cache) == 1 else 's'}, batch {cache.batch_size}, {cache.nbytes} bytes"
    lines = [f"Cache({count}" + (f", fingerprint {cache.fingerprint!r}" if cache.fingerprint else "")]
    for i, layer in enumerate(cache.layers):
        shapes = [f"{name} {list(t.shape)} {str(t.dtype)[6:]}" for name, t in tensors_of(layer.state or {})]
        tokens = f"{layer.get_seq_length()} tokens, real {_brief(layer.lengths)}"
        lines.append(f"  {i}: {tokens}; {', '.join(shapes) or 'empty'}")
    return "\n".join(lines) + ")"


def _brief(lengths: Optional[torch.Tensor]) -> str:
    if lengths is None:
        return "unknown"
    shown = " ".join(str(n) for n in lengths[:8].tolist())
    return f"{shown} ... ({len(lengths)} rows)" if len(lengths) > 8 else shown

"""What `GatedDeltaNet` accepts: settings, and states that a cache hands it."""

import math
from typing import Any, Dict, Optional, Tuple

import torch

from myfla.layers.layer_inputs import check_positive, check_state
from myfla.utils.errors import CacheError, message, refuse_unknown, value_error

NAME = "GatedDeltaNet"
KEYWORDS = (
    "hidden_size", "expand_v", "head_dim", "num_heads", "num_v_heads", "mode", "use_gate", "use_short_conv",
    "allow_neg_eigval", "conv_size", "conv_bias", "layer_idx", "norm_eps", "output_gate_activation", "backend",
    "device", "dtype",
)  # fmt: skip
# Official names that choose a kernel and not a result.
INERT = ("chunk_size", "fuse_norm")
ACTIVATIONS = ("swish", "silu", "sigmoid")
MODES = ("chunk", "fused_recurrent")

ConvStates = Tuple[Optional[torch.Tensor], Optional[torch.Tensor], Optional[torch.Tensor]]
NO_CONV_STATES: ConvStates = (None, None, None)


def check_settings(layer: Any, unknown: Dict[str, Any]) -> None:
    """Refuse constructor arguments, set as attributes of ``layer``, that are out of range or do not fit each other."""
    refuse_unknown(NAME, unknown, KEYWORDS, INERT)
    sizes = ("hidden_size", "head_dim", "num_heads", "num_v_heads", "conv_size")
    check_positive(NAME, **{field: getattr(layer, field) for field in sizes})
    for field in ("use_gate", "use_short_conv", "allow_neg_eigval", "conv_bias"):
        if not isinstance(getattr(layer, field), bool):
            raise value_error(NAME, field, "must be True or False", getattr(layer, field))
    heads = layer.num_heads
    if layer.num_v_heads % heads:
        hint = f"use {heads}, {2 * heads}, {3 * heads}"
        raise value_error(NAME, "num_v_heads", f"must be a multiple of num_heads={heads}", layer.num_v_heads, hint)
    for field, known in (("mode", MODES), ("output_gate_activation", ACTIVATIONS)):
        if getattr(layer, field) not in known:
            raise value_error(NAME, field, f"must be one of {', '.join(known)}", getattr(layer, field))
    index, eps = layer.layer_idx, layer.norm_eps
    if index is not None and (isinstance(index, bool) or not isinstance(index, int) or index < 0):
        raise value_error(NAME, "layer_idx", "must be an integer from 0, or None", index)
    if not isinstance(eps, (int, float)) or isinstance(eps, bool) or not math.isfinite(eps) or eps < 0:
        raise value_error(NAME, "norm_eps", "must be a finite number from 0", eps)


def value_size(head_dim: int, expand_v: Any) -> int:
    """``head_dim * expand_v``, which must be a positive integer up to rounding."""
    number = isinstance(expand_v, (int, float)) and not isinstance(expand_v, bool)
    if not number or not math.isfinite(expand_v) or expand_v <= 0:
        raise value_error(NAME, "expand_v", "must be a positive number", expand_v)
    size = round(head_dim * expand_v)
    if size < 1 or not math.isclose(head_dim * expand_v, size, rel_tol=1e-5):
        hint = f"use {max(size, 1) / head_dim:.6g}"
        raise value_error(NAME, "expand_v", f"times head_dim={head_dim} must be an integer", expand_v, hint)
    return size


def check_states(
    layer: Any, state: Optional[Dict[str, Any]], sequences: int, x: torch.Tensor
) -> Tuple[Optional[torch.Tensor], ConvStates]:
    """The states of a layer's cache slot, if they are this layer's for so many sequences.

    Args:
        layer: a `GatedDeltaNet`.
        state: what `read_layer_state` gave.
        sequences: N.
        x: the layer's input.

    Returns:
        The recurrent state ``[N, HV, K, V]`` and those of the convolutions, each None where there is none.

    Raises:
        CacheError: a state of another layer, batch, layout, dtype or device.
    """
    if state is None:
        return None, NO_CONV_STATES
    recurrent, conv = state.get("recurrent_state"), state.get("conv_state")
    batch, heads = ("batch", sequences), ("value heads", layer.num_v_heads)
    if recurrent is not None:
        sizes = (batch, heads, ("key size", layer.head_k_dim), ("value size", layer.head_v_dim))
        check_state(NAME, "recurrent_state", recurrent, sizes, x, wide=True)
    if conv is None:
        return recurrent, NO_CONV_STATES
    if not layer.use_short_conv or not isinstance(conv, (tuple, list)) or len(conv) != 3:
        rule = "must be the states of q, k and v" if layer.use_short_conv else "must be None without convolutions"
        got = f"{len(conv)} states" if isinstance(conv, (tuple, list)) else type(conv).__name__
        raise CacheError(message(NAME, "conv_state", rule, got, "the cache belongs to a layer with other settings"))
    for part, tensor, size in zip("qkv", conv, (layer.key_dim, layer.key_dim, layer.value_dim)):
        taps = (batch, ("channels", size), ("taps", layer.conv_size))
        check_state(NAME, f"conv_state of {part}", tensor, taps, x)
    return recurrent, tuple(conv)

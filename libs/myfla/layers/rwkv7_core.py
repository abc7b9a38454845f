"""The parts of an RWKV-7 layer around its projections: mixtures before them, the rule and output gate after them."""

from typing import Any, Callable, Dict, NamedTuple, Optional, Tuple, cast

import torch

from myfla.layers.native_steps import rwkv7_layer_step, rwkv7_mix_step
from myfla.layers.recurrent_layer import LayerCall
from myfla.modules.layernorm import group_norm
from myfla.modules.token_shift import token_shift
from myfla.ops.rwkv7 import chunk_rwkv7, fused_recurrent_rwkv7
from myfla.ops.rwkv7.fused_addcmul import fused_addcmul_rwkv7
from myfla.ops.rwkv7.gate_output_correction import gate_output_correction
from myfla.ops.rwkv7.key_gates import STRONGEST_DECAY, key_gates
from myfla.ops.rwkv7.value_residual import mix_values

__all__ = ["Projected", "mix_time", "mix_tokens"]


class Projected(NamedTuple):
    """Outputs of the maps: ``[B, T, H * K]``, and of values ``[B, T, H * V]``."""

    r: torch.Tensor
    w: torch.Tensor  # before its activation
    k: torch.Tensor
    v: torch.Tensor
    a: torch.Tensor  # before its activation
    gate: torch.Tensor  # of the output
    v_first: Optional[torch.Tensor] = None  # values of layer 0, and the share of them before its sigmoid
    v_share: Optional[torch.Tensor] = None


def mix_tokens(layer: Any, x: torch.Tensor, call: LayerCall) -> Tuple[Tuple[torch.Tensor, ...], torch.Tensor]:
    """Each token mixed with the one before it.

    Args:
        layer: an `RWKV7Attention`.
        x: ``[B, T, D]`` without padding.
        call: the call of the layer.

    Returns:
        six of ``[B, T, D]``, for r, w, k, v, a and g; and the last token of each sequence ``[N, D]``.
    """
    mixes = (layer.x_r, layer.x_w, layer.x_k, layer.x_v, layer.x_a, layer.x_g)
    step = rwkv7_mix_step(layer, x, mixes, call)
    if step is not None:
        return step
    delta, last = token_shift(x, call.cu_seqlens, cache=call.conv_state, output_cache=True)
    return cast(Tuple[torch.Tensor, ...], fused_addcmul_rwkv7(x, delta, *mixes)), last


def mix_time(layer: Any, p: Projected, call: LayerCall) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
    """The rule, the norm of its heads, the current token's bonus and the output gate.

    Args:
        layer: an `RWKV7Attention`.
        p: behind its maps.
        call: the call of the layer.

    Returns:
        ``[B, T, H * V]`` for the output projection, and the final states.
    """
    step = rwkv7_layer_step(layer, p, call)
    if step is not None:
        return step
    r = p.r.view(*p.r.shape[:2], layer.num_heads, layer.head_dim)
    v = p.v if p.v_share is None or p.v_first is None else mix_values(p.v, p.v_first, p.v_share)
    v = v.view(*v.shape[:2], layer.num_heads, layer.head_v_dim)
    w, k, a, b = key_gates(
        p.k, p.w, p.a, layer.k_k, layer.k_a, layer.head_dim, 1e-6 if layer.fuse_norm else None,
    )  # fmt: skip
    op: Callable[..., Tuple[torch.Tensor, Optional[torch.Tensor]]] = chunk_rwkv7
    more: Dict[str, Any] = {"lower_bound": STRONGEST_DECAY}
    if not call.chunks:
        op, more = fused_recurrent_rwkv7, {"inplace_final_state": call.inplace}
    reading, written = (x.float() if _overflows(x) else x for x in (r, v))  # o has their format
    o, state = op(
        reading, w, k, written, a, b, scale=1.0, initial_state=call.recurrent_state, output_final_state=call.keep,
        cu_seqlens=call.cu_seqlens, backend=layer.backend, **more,
    )
    o = o.reshape(*p.v.shape)
    norm = layer.g_norm
    normed = group_norm(o, norm.weight, norm.bias, eps=norm.eps, num_groups=layer.num_heads)
    o = gate_output_correction(cast(torch.Tensor, normed), r, k, layer.r_k, v, p.gate)
    return o.to(v.dtype), state


def _overflows(x: torch.Tensor) -> bool:
    """Whether o would leave its dtype's range long before its norm does; a GPU's kernels need one dtype for all."""
    return x.dtype == torch.float16 and x.device.type == "cpu"

"""The gated linear attention layer: a decaying sum of key-value products, without the delta rule's correction."""

import math
from typing import Any, Dict, Optional, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F

from myfla.backends import check_backend
from myfla.layers.feature_maps import ACTIVATIONS
from myfla.layers.projections import project
from myfla.layers.recurrent_layer import LayerCall
from myfla.layers.settings import MODES, check_settings, expanded, split_heads_of, wide_dtype
from myfla.layers.short_convs import ConvLayer, Parts
from myfla.modules import FusedRMSNormGated, RMSNorm
from myfla.ops.gla import chunk_gla, fused_recurrent_gla
from myfla.utils.dtypes import accumulation_dtype
from myfla.utils.errors import refuse_unknown, value_error

__all__ = ["GatedLinearAttention"]

KEYWORDS = (
    "mode", "hidden_size", "expand_k", "expand_v", "num_heads", "num_kv_heads", "feature_map", "use_short_conv",
    "conv_size", "conv_bias", "use_output_gate", "gate_fn", "elementwise_affine", "norm_eps", "gate_logit_normalizer",
    "gate_low_rank_dim", "clamp_min", "fuse_norm", "layer_idx", "backend", "device", "dtype",
)  # fmt: skip


class GatedLinearAttention(ConvLayer):
    """Gated linear attention (arXiv 2312.06635), with the parameters, results and cache protocol of fla 0.6.0's layer.

    For each head, with a log decay ``g = logsigmoid(gk_proj(x)) / gate_logit_normalizer`` for every key channel::

        S <- diag(exp(g)) S + k v^T;  o = S^T q / sqrt(K)
        y = o_proj(RMSNorm(o) * silu(g_proj(x)))

    States are summed in float32, or in float64 for a float64 layer; outputs have the input's dtype.

    Args:
        mode: ``"chunk"`` or ``"fused_recurrent"``, see `GatedDeltaNet`; the official ``"fused_chunk"`` is ``"chunk"``.
            All give the same result up to rounding.
        hidden_size: channels in and out, D.
        expand_k, expand_v: size of all keys, and of all values, over ``hidden_size``.
        num_heads: heads of queries, H.
        num_kv_heads: heads of keys, values and decays, of which num_heads is a multiple; num_heads if not given.
        feature_map: activation of q and k, or None: ``"relu"``, ``"sigmoid"``, ``"logsigmoid"``, ``"silu"``,
            ``"swish"``, ``"sqrelu"`` or ``"gelu"``.
        use_short_conv: convolve q, k and v, with SiLU; without it they are as projected.
        conv_size: taps of the convolutions, W.
        conv_bias: give them a bias.
        use_output_gate: gate the output.
        gate_fn: activation of the gate, as ``feature_map``.
        elementwise_affine: give the norm a weight.
        norm_eps: added to the mean square in the norm.
        gate_logit_normalizer: see above; a positive number.
        gate_low_rank_dim: inner size of ``gk_proj``.
        clamp_min: least log decay, or None.
        fuse_norm: hold the norm's weight as ``g_norm_swish_gate`` (with ``gate_fn="swish"``) and not as ``g_norm``.
        layer_idx: the layer's slot in a cache; needed to use one.
        backend: which code computes the rule, see `myfla.backends`.
        device, dtype: of the parameters. The norm ``g_norm`` stays float32 in a half-precision layer.

    Raises:
        ValueError: an argument out of range, or arguments that do not fit each other.
        BackendError: a backend that is unknown or not available here.
        TypeError: an unknown keyword.

    Example:
        >>> layer = GatedLinearAttention(hidden_size=32, num_heads=2, layer_idx=0)
        >>> layer(torch.randn(2, 10, 32))[0].shape
        torch.Size([2, 10, 32])
    """

    who = "GatedLinearAttention"
    shown = ("hidden_size", "expand_k", "expand_v", "num_heads", "num_kv_heads", "mode", "feature_map",
             "use_short_conv", "conv_size", "conv_bias", "use_output_gate", "gate_fn", "norm_eps",
             "gate_logit_normalizer", "clamp_min", "layer_idx")

    def __init__(
        self,
        mode: str = "chunk",
        hidden_size: int = 1024,
        expand_k: float = 0.5,
        expand_v: float = 1.0,
        num_heads: int = 4,
        num_kv_heads: Optional[int] = None,
        feature_map: Optional[str] = None,
        use_short_conv: bool = False,
        conv_size: int = 4,
        conv_bias: bool = False,
        use_output_gate: bool = True,
        gate_fn: str = "swish",
        elementwise_affine: Optional[bool] = True,
        norm_eps: float = 1e-5,
        gate_logit_normalizer: int = 16,
        gate_low_rank_dim: int = 16,
        clamp_min: Optional[float] = None,
        fuse_norm: bool = True,
        layer_idx: Optional[int] = None,
        *,
        backend: str = "auto",
        device: Any = None,
        dtype: Optional[torch.dtype] = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        refuse_unknown(self.who, kwargs, KEYWORDS, ("chunk_size",))
        self.mode, self.layer_idx, self.norm_eps = mode, layer_idx, norm_eps
        self.hidden_size, self.expand_k, self.expand_v = hidden_size, expand_k, expand_v
        self.num_heads = self.num_v_heads = num_heads
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        self.feature_map, self.gate_fn = feature_map, gate_fn
        self.use_short_conv, self.conv_size, self.conv_bias = use_short_conv, conv_size, conv_bias
        self.use_output_gate, self.fuse_norm = use_output_gate, fuse_norm
        self.gate_logit_normalizer, self.gate_low_rank_dim = gate_logit_normalizer, gate_low_rank_dim
        self.clamp_min, self.elementwise_affine = clamp_min, bool(elementwise_affine)
        self.backend = check_backend(self.who, backend)
        check_settings(
            self.who, self, sizes=("hidden_size", "num_heads", "num_kv_heads", "conv_size", "gate_low_rank_dim"),
            flags=("use_short_conv", "conv_bias", "use_output_gate", "fuse_norm"),
            choices={"feature_map": (None, *ACTIVATIONS), "gate_fn": tuple(ACTIVATIONS),
                     "mode": (*MODES, "fused_chunk")},
        )  # fmt: skip
        for field, rule, fits in (
            ("gate_logit_normalizer", "must be a positive number", lambda x: math.isfinite(x) and x > 0),
            ("clamp_min", "must be a number or None", math.isfinite),
        ):
            value = getattr(self, field)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not (number and fits(value)) and not (field == "clamp_min" and value is None):
                raise value_error(self.who, field, rule, value)
        self.mode = "chunk" if mode == "fused_chunk" else mode
        self.num_kv_groups = split_kv(self.who, num_heads, self.num_kv_heads)
        self.key_dim = expanded(self.who, "expand_k", expand_k, hidden_size, "hidden_size")
        self.value_dim = expanded(self.who, "expand_v", expand_v, hidden_size, "hidden_size")
        self.head_k_dim = split_heads_of(self.who, "hidden_size * expand_k", self.key_dim, num_heads)
        self.head_v_dim = split_heads_of(self.who, "hidden_size * expand_v", self.value_dim, num_heads)
        self.key_dim_per_group = self.key_dim // self.num_kv_groups
        self.value_dim_per_group = self.value_dim // self.num_kv_groups
        self.conv_channels = (self.key_dim, self.key_dim_per_group, self.value_dim_per_group)

        new = {"device": device, "dtype": dtype}
        self._build_qkv(new)
        if use_output_gate:
            self.g_proj = nn.Linear(hidden_size, self.value_dim, bias=False, **new)
        if use_short_conv:
            self._build_convs(new)
        self.gk_proj = nn.Sequential(
            nn.Linear(hidden_size, gate_low_rank_dim, bias=False, **new),
            nn.Linear(gate_low_rank_dim, self.key_dim_per_group, bias=True, **new),
        )
        self.o_proj = nn.Linear(self.value_dim, hidden_size, bias=False, **new)
        self.fuse_norm_and_gate = gate_fn == "swish" and fuse_norm and use_output_gate
        norm: Dict[str, Any] = {"elementwise_affine": self.elementwise_affine, "eps": norm_eps, "device": device}
        if self.fuse_norm_and_gate:
            self.g_norm_swish_gate = FusedRMSNormGated(self.head_v_dim, dtype=dtype, **norm)
        else:
            self.g_norm = RMSNorm(self.head_v_dim, dtype=wide_dtype(dtype), **norm)

    def _without_convs(self, parts: Parts) -> Parts:
        return parts

    def _mix(self, x: torch.Tensor, call: LayerCall) -> Tuple[torch.Tensor, Optional[torch.Tensor], Any]:
        (q, k, v), conv_state = self._qkv(x, call)
        shape, g = x.shape[:2], self.gates(x)
        q = q.view(*shape, self.num_heads, self.head_k_dim)
        k = k.view(*shape, self.num_kv_heads, self.head_k_dim)
        v = v.view(*shape, self.num_kv_heads, self.head_v_dim)
        if self.num_kv_groups > 1:
            k, v, g = (t.repeat_interleave(self.num_kv_groups, 2) for t in (k, v, g))
        if self.feature_map is not None:
            q, k = ACTIVATIONS[self.feature_map](q), ACTIVATIONS[self.feature_map](k)
        decay = {"g" if call.chunks else "gk": g}
        o, recurrent_state = self._run_rule(chunk_gla, fused_recurrent_gla, call, q=q, k=k, v=v, **decay)
        return o, recurrent_state, conv_state

    def gates(self, x: torch.Tensor) -> torch.Tensor:
        """Log decays ``[B, T, num_kv_heads, head_k_dim]`` at each token of x, float32 (float64 for float64)."""
        gate = project(self.gk_proj, x)
        g = F.logsigmoid(gate.to(accumulation_dtype(gate))) / self.gate_logit_normalizer
        g = g if self.clamp_min is None else g.clamp(min=self.clamp_min)
        return g.view(*x.shape[:2], self.num_kv_heads, self.head_k_dim)

    def _output(self, x: torch.Tensor, o: torch.Tensor) -> torch.Tensor:
        gate = project(self.g_proj, x).view(o.shape) if self.use_output_gate else None
        if self.fuse_norm_and_gate:
            o = self.g_norm_swish_gate(o, gate)
        else:
            o = self.g_norm(o)
            o = o if gate is None else o * ACTIVATIONS[self.gate_fn](gate)
        return project(self.o_proj, o.reshape(*o.shape[:2], self.value_dim))


def split_kv(who: str, heads: int, kv_heads: int) -> int:
    """Heads of queries for one of keys and values."""
    if heads % kv_heads:
        raise value_error(who, "num_kv_heads", f"must divide num_heads={heads}", kv_heads)
    return heads // kv_heads

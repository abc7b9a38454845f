"""The Gated DeltaNet 2 layer: erasing and writing with separate gates, channel by channel."""

from typing import Any, Optional, Tuple

import torch
import torch.nn as nn

from myfla.layers.native_steps import StepGates
from myfla.layers.projections import project
from myfla.layers.recurrent_layer import LayerCall
from myfla.layers.settings import wide_dtype
from myfla.layers.short_convs import ConvLayer
from myfla.modules import FusedRMSNormGated
from myfla.ops.gated_delta_rule.gate import beta_sigmoid
from myfla.ops.gdn2 import chunk_gdn2, fused_recurrent_gdn2
from myfla.ops.kda.gate import fused_kda_gate

__all__ = ["GatedDeltaNet2"]

KEYWORDS = (
    "hidden_size", "expand_v", "head_dim", "num_heads", "num_v_heads", "mode", "use_short_conv", "allow_neg_eigval",
    "conv_size", "conv_bias", "layer_idx", "norm_eps", "backend", "device", "dtype",
)  # fmt: skip


class GatedDeltaNet2(ConvLayer):
    """Gated DeltaNet 2, with the parameters, results and cache protocol of fla 0.6.0's layer.

    For each value head, with ``q``, ``k`` of length one, log decay ``g = -exp(A_log) softplus(f_proj(x) + dt_bias)``
    for every key channel, erase gate ``b = sigmoid(b_proj(x))`` and write gate ``w = sigmoid(w_proj(x))``::

        S <- diag(exp(g)) S;  S <- S + k (w * v - S^T (b * k))^T;  o = S^T q / sqrt(head_dim)
        y = o_proj(RMSNorm(o) * sigmoid(g_proj(x)))

    ``q``, ``k`` and ``v`` pass a causal depthwise convolution with SiLU first. States are summed in float32, or in
    float64 for a float64 layer; outputs have the input's dtype.

    Args:
        hidden_size: channels in and out, D.
        expand_v: value size over key size; ``head_dim * expand_v`` must be an integer.
        head_dim: key size of one head, K.
        num_heads: query and key heads, H; decay and erase gate have as many.
        num_v_heads: value heads, HV, a multiple of H; H if not given.
        mode: ``"chunk"`` or ``"fused_recurrent"``, see `GatedDeltaNet`. Both give the same result up to rounding.
        use_short_conv: convolve q, k and v; without it only SiLU is applied.
        allow_neg_eigval: double the erase gate, so that the state can change sign (arXiv 2411.12537).
        conv_size: taps of the convolutions, W.
        conv_bias: give them a bias.
        layer_idx: the layer's slot in a cache; needed to use one.
        norm_eps: added to the mean square in the norm.
        backend: which code computes the rule, see `myfla.backends`.
        device, dtype: of the parameters. ``A_log`` stays float32 in a half-precision layer.

    Raises:
        ValueError: an argument out of range, or arguments that do not fit each other.
        BackendError: a backend that is unknown or not available here.
        TypeError: an unknown keyword.

    Example:
        >>> layer = GatedDeltaNet2(hidden_size=32, head_dim=8, num_heads=2, layer_idx=0)
        >>> layer(torch.randn(2, 10, 32))[0].shape
        torch.Size([2, 10, 32])
    """

    who = "GatedDeltaNet2"
    shown = ("hidden_size", "head_dim", "num_heads", "num_v_heads", "expand_v", "mode", "use_short_conv",
             "allow_neg_eigval", "conv_size", "conv_bias", "layer_idx", "norm_eps")
    decay_after = "w_proj"
    A_range = (1.0, 16.0)
    allow_neg_eigval: bool

    def __init__(
        self,
        hidden_size: int = 2048,
        expand_v: float = 1.0,
        head_dim: int = 128,
        num_heads: int = 16,
        num_v_heads: Optional[int] = None,
        mode: str = "chunk",
        use_short_conv: bool = True,
        allow_neg_eigval: bool = False,
        conv_size: int = 4,
        conv_bias: bool = False,
        layer_idx: Optional[int] = None,
        norm_eps: float = 1e-5,
        *,
        backend: str = "auto",
        device: Any = None,
        dtype: Optional[torch.dtype] = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self._settle(
            KEYWORDS, kwargs, ("allow_neg_eigval",), hidden_size=hidden_size, expand_v=expand_v, head_dim=head_dim,
            num_heads=num_heads, num_v_heads=num_v_heads, mode=mode, use_short_conv=use_short_conv,
            allow_neg_eigval=allow_neg_eigval, conv_size=conv_size, conv_bias=conv_bias, layer_idx=layer_idx,
            norm_eps=norm_eps, backend=backend,
        )  # fmt: skip
        new = {"device": device, "dtype": dtype}
        self._build_qkv(new)
        self._build_convs(new)
        self.f_proj = nn.Sequential(
            nn.Linear(hidden_size, self.head_v_dim, bias=False, **new),
            nn.Linear(self.head_v_dim, self.key_dim, bias=False, **new),
        )
        self.b_proj = nn.Linear(hidden_size, self.key_dim, bias=False, **new)
        self.w_proj = nn.Linear(hidden_size, self.value_dim, bias=False, **new)
        self.A_log = nn.Parameter(torch.empty(num_heads, device=device, dtype=wide_dtype(dtype)))
        self.dt_bias = nn.Parameter(torch.empty(self.key_dim, **new))
        self._reset_decay()
        self.g_proj = nn.Sequential(
            nn.Linear(hidden_size, self.head_v_dim, bias=False, **new),
            nn.Linear(self.head_v_dim, self.value_dim, bias=True, **new),
        )
        self.o_norm = FusedRMSNormGated(self.head_v_dim, activation="sigmoid", eps=norm_eps, **new)
        self.o_proj = nn.Linear(self.value_dim, hidden_size, bias=False, **new)

    def _mix(self, x: torch.Tensor, call: LayerCall) -> Tuple[torch.Tensor, Optional[torch.Tensor], Any]:
        (q, k, v), conv_state = self._qkv(x, call)
        g, b, w = self.gates(x)
        q, k = (t.view(*x.shape[:2], self.num_heads, self.head_k_dim) for t in (q, k))
        if self.num_v_heads > self.num_heads:
            q, k, g, b = (t.repeat_interleave(self.num_v_heads // self.num_heads, 2) for t in (q, k, g, b))
        v = v.view(*x.shape[:2], self.num_v_heads, self.head_v_dim)
        o, recurrent_state = self._run_rule(
            chunk_gdn2, fused_recurrent_gdn2, call, q=q, k=k, v=v, g=g, b=b, w=w, use_qk_l2norm_in_kernel=True
        )
        return o, recurrent_state, conv_state

    def _step_gates(self, x: torch.Tensor) -> StepGates:
        g, erase, write = (project(part, x) for part in (self.f_proj, self.b_proj, self.w_proj))
        doubled = 2 if self.allow_neg_eigval else 1
        return StepGates(g, None, self.A_log, self.dt_bias, doubled, rule="GDN2", erase=erase, write=write)

    def gates(self, x: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Decay and write strength at each token of ``x`` ``[B, T, hidden_size]``.

        Returns:
            log decay ``g`` and erase gate ``b`` ``[B, T, num_heads, head_dim]``, write gate ``w``
            ``[B, T, num_v_heads, head_v_dim]``, float32 (float64 for float64).
        """
        heads = (*x.shape[:2], self.num_heads, self.head_k_dim)
        g = fused_kda_gate(project(self.f_proj, x).view(heads), self.A_log, self.dt_bias)
        b = beta_sigmoid(project(self.b_proj, x), self.allow_neg_eigval).view(heads)
        w = beta_sigmoid(project(self.w_proj, x)).view(*x.shape[:2], self.num_v_heads, self.head_v_dim)
        return g, b, w

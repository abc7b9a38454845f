"""The Comba layer: GatedDeltaNet with a separate key for erasing, and a correction of the output."""

import math
from typing import Any, Optional, Tuple

import torch
import torch.nn as nn

from myfla.layers.native_steps import StepGates
from myfla.layers.projections import project
from myfla.layers.recurrent_layer import LayerCall
from myfla.layers.settings import wide_dtype
from myfla.layers.short_convs import ConvLayer
from myfla.modules import FusedRMSNormGated, RMSNorm
from myfla.ops.comba import chunk_comba, fused_recurrent_comba
from myfla.ops.gated_delta_rule.gate import beta_sigmoid, fused_gdn_gate
from myfla.utils.errors import value_error

__all__ = ["Comba"]

KEYWORDS = (
    "hidden_size", "expand_v", "head_dim", "num_heads", "num_v_heads", "mode", "use_short_conv", "use_output_gate",
    "use_output_correction", "use_inner_decay", "correction_factor", "conv_size", "conv_bias", "layer_idx", "norm_eps",
    "backend", "device", "dtype",
)  # fmt: skip


class Comba(ConvLayer):
    """Comba (arXiv 2506.02475), with the parameters, results and cache protocol of fla 0.6.0's layer.

    For each value head, with ``q``, ``k``, ``p`` of length one, log decay ``g = -exp(A_log) softplus(a_proj(x) +
    dt_bias)`` and write strength ``beta = sigmoid(b_proj(x))``::

        p = sigmoid(decay) k;  q <- q - D p
        S <- exp(g) S + k (beta (v - S^T p))^T;  o = S^T q / sqrt(head_dim)
        y = o_proj(RMSNorm(o) * sigmoid(g_proj(x)))

    ``q``, ``k`` and ``v`` pass a causal depthwise convolution with SiLU first. ``p`` is normalised as q and k are, so
    that the inner decay reaches the outputs through the correction of q alone, as in the official layer. States are
    summed in float32, or in float64 for a float64 layer; outputs have the input's dtype.

    Args:
        hidden_size: channels in and out, D.
        expand_v: value size over key size; ``head_dim * expand_v`` must be an integer.
        head_dim: key size of one head, K.
        num_heads: query and key heads, H.
        num_v_heads: value heads, HV, a multiple of H; H if not given.
        mode: ``"chunk"`` or ``"fused_recurrent"``, see `GatedDeltaNet`. Both give the same result up to rounding.
        use_short_conv: convolve q, k and v; without it only SiLU is applied.
        use_output_gate: gate the output.
        use_output_correction: subtract ``D p`` from q.
        use_inner_decay: scale the erasing key p by ``sigmoid(decay)``; without, p is k.
        correction_factor: where ``D`` begins. 1 as in Mamba-2; 0.02 sometimes suits small models better.
        conv_size: taps of the convolutions, W.
        conv_bias: give them a bias.
        layer_idx: the layer's slot in a cache; needed to use one.
        norm_eps: added to the mean square in the norm.
        backend: which code computes the rule, see `myfla.backends`.
        device, dtype: of the parameters. ``A_log`` and the norm without a gate stay float32 in a half-precision layer.

    Raises:
        ValueError: an argument out of range, or arguments that do not fit each other.
        BackendError: a backend that is unknown or not available here.
        TypeError: an unknown keyword.

    Example:
        >>> layer = Comba(hidden_size=32, head_dim=8, num_heads=2, layer_idx=0)
        >>> layer(torch.randn(2, 10, 32))[0].shape
        torch.Size([2, 10, 32])
    """

    who = "Comba"
    shown = ("hidden_size", "head_dim", "num_heads", "num_v_heads", "expand_v", "mode", "use_short_conv",
             "use_output_gate", "use_output_correction", "use_inner_decay", "correction_factor", "conv_size",
             "conv_bias", "layer_idx", "norm_eps")
    use_output_gate: bool
    use_output_correction: bool
    use_inner_decay: bool
    correction_factor: float

    def __init__(
        self,
        hidden_size: int = 2048,
        expand_v: float = 2,
        head_dim: int = 256,
        num_heads: int = 6,
        num_v_heads: Optional[int] = None,
        mode: str = "chunk",
        use_short_conv: bool = True,
        use_output_gate: bool = True,
        use_output_correction: bool = True,
        use_inner_decay: bool = True,
        correction_factor: float = 1.0,
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
            KEYWORDS, kwargs, ("use_output_gate", "use_output_correction", "use_inner_decay"),
            hidden_size=hidden_size, expand_v=expand_v, head_dim=head_dim, num_heads=num_heads,
            num_v_heads=num_v_heads, mode=mode, use_short_conv=use_short_conv, use_output_gate=use_output_gate,
            use_output_correction=use_output_correction, use_inner_decay=use_inner_decay,
            correction_factor=correction_factor, conv_size=conv_size, conv_bias=conv_bias, layer_idx=layer_idx,
            norm_eps=norm_eps, backend=backend,
        )  # fmt: skip
        if isinstance(correction_factor, bool) or not isinstance(correction_factor, (int, float)) or not math.isfinite(
            correction_factor
        ):
            raise value_error(self.who, "correction_factor", "must be a finite number", correction_factor)
        new = {"device": device, "dtype": dtype}
        self._build_qkv(new)
        self.a_proj = nn.Linear(hidden_size, self.num_v_heads, bias=False, **new)
        self.b_proj = nn.Linear(hidden_size, self.num_v_heads, bias=False, **new)
        if use_inner_decay:
            self.decay = nn.Parameter(torch.empty(num_heads, **new))
        if use_output_correction:
            self.D = nn.Parameter(torch.empty(num_heads, **new))
        self.A_log = nn.Parameter(torch.empty(self.num_v_heads, device=device, dtype=wide_dtype(dtype)))
        self.dt_bias = nn.Parameter(torch.empty(self.num_v_heads, **new))
        self._reset_decay()
        self._build_convs(new)
        if use_output_gate:
            self.g_proj = nn.Linear(hidden_size, self.value_dim, bias=False, **new)
            self.o_norm = FusedRMSNormGated(self.head_v_dim, activation="sigmoid", eps=norm_eps, **new)
        else:
            self.o_norm = RMSNorm(self.head_v_dim, eps=norm_eps, device=device, dtype=wide_dtype(dtype))
        self.o_proj = nn.Linear(self.value_dim, hidden_size, bias=False, **new)

    def _reset_decay(self) -> None:
        super()._reset_decay()
        if self.use_inner_decay:
            nn.init.ones_(self.decay)
        if self.use_output_correction:
            nn.init.constant_(self.D, self.correction_factor)
            setattr(self.D, "_no_weight_decay", True)

    def _mix(self, x: torch.Tensor, call: LayerCall) -> Tuple[torch.Tensor, Optional[torch.Tensor], Any]:
        (q, k, v), conv_state = self._qkv(x, call)
        q, k = (t.view(*x.shape[:2], self.num_heads, self.head_k_dim) for t in (q, k))
        p = (k * self.decay[:, None].sigmoid()).to(k.dtype) if self.use_inner_decay else k
        q = (q - self.D[:, None] * p).to(q.dtype) if self.use_output_correction else q
        g, beta = self.gates(x)
        v = v.view(*x.shape[:2], self.num_v_heads, self.head_v_dim)
        o, recurrent_state = self._run_rule(
            chunk_comba, fused_recurrent_comba, call, q=q, k=k, v=v, p=p, g=g, beta=beta, use_qk_l2norm_in_kernel=True
        )
        return o, recurrent_state, conv_state

    def _step_gates(self, x: torch.Tensor) -> StepGates:
        own = self._parameters
        return StepGates(
            project(self.a_proj, x), project(self.b_proj, x), self.A_log, self.dt_bias, 1, rule="COMBA",
            inner=own.get("decay"), output=own.get("D"),
        )  # fmt: skip

    def gates(self, x: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        """Decay and write strength at each token of ``x`` ``[B, T, hidden_size]``.

        Returns:
            log decay ``g`` and write strength ``beta``, ``[B, T, num_v_heads]`` float32 (float64 for float64).
        """
        g = fused_gdn_gate(project(self.a_proj, x), self.A_log, self.dt_bias)
        return g, beta_sigmoid(project(self.b_proj, x))

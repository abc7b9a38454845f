"""The GatedDeltaNet layer: projections, short convolutions, the gated delta rule, a gated norm."""

from typing import Any, Optional, Tuple

import torch
import torch.nn as nn

from myfla.layers.feature_maps import elu_p1, sum_norm
from myfla.layers.native_steps import StepGates
from myfla.layers.projections import project
from myfla.layers.recurrent_layer import LayerCall
from myfla.layers.settings import wide_dtype
from myfla.layers.short_convs import ConvLayer
from myfla.layers.training_parts import TrainingGates
from myfla.modules import FusedRMSNormGated, RMSNorm
from myfla.ops.gated_delta_rule import chunk_gated_delta_rule, fused_recurrent_gated_delta_rule
from myfla.ops.gated_delta_rule.gate import beta_sigmoid, fused_gdn_gate

__all__ = ["GatedDeltaNet", "elu_p1", "sum_norm"]

KEYWORDS = (
    "hidden_size", "expand_v", "head_dim", "num_heads", "num_v_heads", "mode", "use_gate", "use_short_conv",
    "allow_neg_eigval", "conv_size", "conv_bias", "layer_idx", "norm_eps", "output_gate_activation", "backend",
    "device", "dtype",
)  # fmt: skip
ACTIVATIONS = ("swish", "silu", "sigmoid")


class GatedDeltaNet(ConvLayer):
    """Gated DeltaNet (arXiv 2412.06464), with the parameters, results and cache protocol of fla 0.6.0's layer.

    For each value head, with ``q``, ``k`` of length one, decay ``g = -exp(A_log) softplus(a_proj(x) + dt_bias)`` and
    write strength ``beta = sigmoid(b_proj(x))``::

        S <- exp(g) S;  S <- S + k (beta (v - S^T k))^T;  o = S^T q / sqrt(head_dim)
        y = o_proj(RMSNorm(o) * act(g_proj(x)))

    ``q``, ``k`` and ``v`` pass a causal depthwise convolution with SiLU first. States are summed in float32, or in
    float64 for a float64 layer; outputs have the input's dtype.

    Args:
        hidden_size: channels in and out, D.
        expand_v: value size over key size; ``head_dim * expand_v`` must be an integer.
        head_dim: key size of one head, K.
        num_heads: query and key heads, H.
        num_v_heads: value heads, HV, a multiple of H; H if not given.
        mode: ``"chunk"`` or ``"fused_recurrent"``: the form for long inputs in evaluation without autograd. With
            autograd or in training mode it is always ``"chunk"``, else for up to 64 steps ``"fused_recurrent"``.
            Both give the same result up to rounding.
        use_gate: gate the output.
        use_short_conv: convolve q, k and v; without it only SiLU is applied.
        allow_neg_eigval: double beta, so that the state can change sign (arXiv 2411.12537).
        conv_size: taps of the convolutions, W.
        conv_bias: give them a bias.
        layer_idx: the layer's slot in a cache; needed to use one.
        norm_eps: added to the mean square in the norm.
        output_gate_activation: ``"swish"`` (same as ``"silu"``) or ``"sigmoid"``.
        backend: which code computes the rule: ``"auto"``, ``"naive"``, ``"torch"``, ``"native"``, ``"compiled"`` or
            ``"fla"``; see `myfla.backends`.
        device, dtype: of the parameters. ``A_log`` and the norm without a gate stay float32 in a half-precision layer.

    Raises:
        ValueError: an argument out of range, or arguments that do not fit each other.
        BackendError: a backend that is unknown or not available here.
        TypeError: an unknown keyword.

    Example:
        >>> layer = GatedDeltaNet(hidden_size=32, head_dim=8, num_heads=2, layer_idx=0)
        >>> y, _, _ = layer(torch.randn(2, 10, 32))
        >>> y.shape
        torch.Size([2, 10, 32])
    """

    use_gate: bool
    allow_neg_eigval: bool
    who = "GatedDeltaNet"
    shown = ("hidden_size", "head_dim", "num_heads", "num_v_heads", "expand_v", "mode", "use_gate", "use_short_conv",
             "allow_neg_eigval", "conv_size", "conv_bias", "layer_idx", "norm_eps", "output_gate_activation")

    def __init__(
        self,
        hidden_size: int = 2048,
        expand_v: float = 2,
        head_dim: int = 256,
        num_heads: int = 6,
        num_v_heads: Optional[int] = None,
        mode: str = "chunk",
        use_gate: bool = True,
        use_short_conv: bool = True,
        allow_neg_eigval: bool = False,
        conv_size: int = 4,
        conv_bias: bool = False,
        layer_idx: Optional[int] = None,
        norm_eps: float = 1e-5,
        output_gate_activation: str = "swish",
        *,
        backend: str = "auto",
        device: Any = None,
        dtype: Optional[torch.dtype] = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self._settle(
            KEYWORDS, kwargs, ("use_gate", "allow_neg_eigval"), {"output_gate_activation": ACTIVATIONS},
            hidden_size=hidden_size, expand_v=expand_v, head_dim=head_dim, num_heads=num_heads,
            num_v_heads=num_v_heads, mode=mode, use_gate=use_gate, use_short_conv=use_short_conv,
            allow_neg_eigval=allow_neg_eigval, conv_size=conv_size, conv_bias=conv_bias, layer_idx=layer_idx,
            norm_eps=norm_eps, output_gate_activation=output_gate_activation, backend=backend,
        )  # fmt: skip
        new = {"device": device, "dtype": dtype}
        wide = {"device": device, "dtype": wide_dtype(dtype)}
        self._build_qkv(new)
        self.a_proj = nn.Linear(hidden_size, self.num_v_heads, bias=False, **new)
        self.b_proj = nn.Linear(hidden_size, self.num_v_heads, bias=False, **new)
        self.A_log = nn.Parameter(torch.empty(self.num_v_heads, **wide))
        self.dt_bias = nn.Parameter(torch.empty(self.num_v_heads, **new))
        self._reset_decay()
        self._build_convs(new)
        if use_gate:
            self.g_proj = nn.Linear(hidden_size, self.value_dim, bias=False, **new)
            self.o_norm = FusedRMSNormGated(
                self.head_v_dim, eps=norm_eps, activation=output_gate_activation, **new)
        else:
            self.o_norm = RMSNorm(self.head_v_dim, eps=norm_eps, **wide)
        self.o_proj = nn.Linear(self.value_dim, hidden_size, bias=False, **new)

    def _mix(self, x: torch.Tensor, call: LayerCall) -> Tuple[torch.Tensor, Optional[torch.Tensor], Any]:
        (q, k, v), conv_state = self._qkv(x, call)
        q, k = (t.view(*x.shape[:2], self.num_heads, self.head_k_dim) for t in (q, k))
        o, recurrent_state = self._run_rule(
            chunk_gated_delta_rule, fused_recurrent_gated_delta_rule, call,
            q=q, k=k, v=v.view(*x.shape[:2], self.num_v_heads, self.head_v_dim),
            g=project(self.a_proj, x), beta=project(self.b_proj, x), use_qk_l2norm_in_kernel=True,
            use_gate_in_kernel=True, A_log=self.A_log, dt_bias=self.dt_bias, use_beta_sigmoid_in_kernel=True,
            allow_neg_eigval=self.allow_neg_eigval,
        )  # fmt: skip
        return o, recurrent_state, conv_state

    def _step_gates(self, x: torch.Tensor) -> StepGates:
        g, beta = project(self.a_proj, x), project(self.b_proj, x)
        return StepGates(g, beta, self.A_log, self.dt_bias, 2 if self.allow_neg_eigval else 1)

    def _training_gates(self) -> TrainingGates:
        scale = 2 if self.allow_neg_eigval else 1
        return TrainingGates(self.a_proj, self.b_proj, self.A_log, self.dt_bias, scale)

    def gates(self, x: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        """Decay and write strength at each token of ``x`` ``[B, T, hidden_size]``.

        Returns:
            log decay ``g`` and write strength ``beta``, ``[B, T, num_v_heads]`` float32 (float64 for float64).
        """
        g = fused_gdn_gate(project(self.a_proj, x), self.A_log, self.dt_bias)
        return g, beta_sigmoid(project(self.b_proj, x), self.allow_neg_eigval)

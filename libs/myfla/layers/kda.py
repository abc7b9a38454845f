"""The Kimi Delta Attention layer: GatedDeltaNet with a decay for every key channel."""

from typing import Any, Optional, Tuple

import torch
import torch.nn as nn

from myfla.layers.native_steps import StepGates
from myfla.layers.projections import project
from myfla.layers.recurrent_layer import LayerCall
from myfla.layers.settings import wide_dtype
from myfla.layers.short_convs import ConvLayer
from myfla.layers.training_parts import TrainingGates
from myfla.modules import FusedRMSNormGated
from myfla.ops.gated_delta_rule.gate import beta_sigmoid
from myfla.ops.kda import chunk_kda, fused_recurrent_kda
from myfla.ops.kda.gate import fused_kda_gate
from myfla.utils.errors import value_error

__all__ = ["KimiDeltaAttention"]

KEYWORDS = (
    "hidden_size", "expand_v", "head_dim", "num_heads", "num_v_heads", "mode", "use_short_conv", "allow_neg_eigval",
    "safe_gate", "lower_bound", "conv_size", "conv_bias", "layer_idx", "norm_eps", "backend", "device", "dtype",
)  # fmt: skip


class KimiDeltaAttention(ConvLayer):
    """Kimi Delta Attention (arXiv 2510.26692), with the parameters, results and cache protocol of fla 0.6.0's layer.

    For each value head, with ``q``, ``k`` of length one, a log decay for every key channel
    ``g = -exp(A_log) softplus(f_proj(x) + dt_bias)`` and write strength ``beta = sigmoid(b_proj(x))``::

        S <- diag(exp(g)) S;  S <- S + k (beta (v - S^T k))^T;  o = S^T q / sqrt(head_dim)
        y = o_proj(RMSNorm(o) * sigmoid(g_proj(x)))

    ``q``, ``k`` and ``v`` pass a causal depthwise convolution with SiLU first. States are summed in float32, or in
    float64 for a float64 layer; outputs have the input's dtype.

    Args:
        hidden_size: channels in and out, D.
        expand_v: value size over key size; ``head_dim * expand_v`` must be an integer.
        head_dim: key size of one head, K.
        num_heads: query and key heads, H.
        num_v_heads: value heads, HV, a multiple of H; H if not given.
        mode: ``"chunk"`` or ``"fused_recurrent"``, see `GatedDeltaNet`. Both give the same result up to rounding.
        use_short_conv: convolve q, k and v; without it only SiLU is applied.
        allow_neg_eigval: double beta, so that the state can change sign (arXiv 2411.12537).
        safe_gate: keep the log decay above ``lower_bound``; ``A_log`` then begins at 0.
        lower_bound: the decay is ``lower_bound * sigmoid(exp(A_log) (f_proj(x) + dt_bias))``; a negative number.
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
        >>> layer = KimiDeltaAttention(hidden_size=32, head_dim=8, num_heads=2, layer_idx=0)
        >>> layer(torch.randn(2, 10, 32))[0].shape
        torch.Size([2, 10, 32])
    """

    who = "KimiDeltaAttention"
    shown = ("hidden_size", "head_dim", "num_heads", "num_v_heads", "expand_v", "mode", "use_short_conv",
             "allow_neg_eigval", "safe_gate", "lower_bound", "conv_size", "conv_bias", "layer_idx", "norm_eps")
    allow_neg_eigval: bool
    safe_gate: bool
    lower_bound: Optional[float]

    def __init__(
        self,
        hidden_size: int = 2048,
        expand_v: float = 1,
        head_dim: int = 128,
        num_heads: int = 16,
        num_v_heads: Optional[int] = None,
        mode: str = "chunk",
        use_short_conv: bool = True,
        allow_neg_eigval: bool = False,
        safe_gate: bool = False,
        lower_bound: Optional[float] = None,
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
            KEYWORDS, kwargs, ("allow_neg_eigval", "safe_gate"), hidden_size=hidden_size, expand_v=expand_v,
            head_dim=head_dim, num_heads=num_heads, num_v_heads=num_v_heads, mode=mode,
            use_short_conv=use_short_conv, allow_neg_eigval=allow_neg_eigval, safe_gate=safe_gate,
            lower_bound=lower_bound, conv_size=conv_size, conv_bias=conv_bias, layer_idx=layer_idx,
            norm_eps=norm_eps, backend=backend,
        )  # fmt: skip
        if lower_bound is None and safe_gate:
            raise value_error(self.who, "lower_bound", "must be given with safe_gate=True", None, "use -5.0")
        if lower_bound is not None and not (isinstance(lower_bound, (int, float)) and lower_bound < 0):
            raise value_error(self.who, "lower_bound", "must be a negative number or None", lower_bound)
        self.A_range = (1.0, 1.0) if safe_gate else (1.0, 16.0)
        self.gate_dim = self.num_v_heads * self.head_k_dim

        new = {"device": device, "dtype": dtype}
        self._build_qkv(new)
        self._build_convs(new)
        self.f_proj = nn.Sequential(
            nn.Linear(hidden_size, self.head_v_dim, bias=False, **new),
            nn.Linear(self.head_v_dim, self.gate_dim, bias=False, **new),
        )
        self.b_proj = nn.Linear(hidden_size, self.num_v_heads, bias=False, **new)
        self.A_log = nn.Parameter(torch.empty(self.num_v_heads, device=device, dtype=wide_dtype(dtype)))
        self.dt_bias = nn.Parameter(torch.empty(self.gate_dim, **new))
        self._reset_decay()
        self.g_proj = nn.Sequential(
            nn.Linear(hidden_size, self.head_v_dim, bias=False, **new),
            nn.Linear(self.head_v_dim, self.value_dim, bias=True, **new),
        )
        self.o_norm = FusedRMSNormGated(self.head_v_dim, activation="sigmoid", eps=norm_eps, **new)
        self.o_proj = nn.Linear(self.value_dim, hidden_size, bias=False, **new)

    def _mix(self, x: torch.Tensor, call: LayerCall) -> Tuple[torch.Tensor, Optional[torch.Tensor], Any]:
        (q, k, v), conv_state = self._qkv(x, call)
        q, k = (t.view(*x.shape[:2], self.num_heads, self.head_k_dim) for t in (q, k))
        bounded = {"safe_gate": self.safe_gate} if call.chunks else {}
        o, recurrent_state = self._run_rule(
            chunk_kda, fused_recurrent_kda, call,
            q=q, k=k, v=v.view(*x.shape[:2], self.num_v_heads, self.head_v_dim), g=self._gate_input(x),
            beta=project(self.b_proj, x), A_log=self.A_log, dt_bias=self.dt_bias, use_qk_l2norm_in_kernel=True,
            use_gate_in_kernel=True, use_beta_sigmoid_in_kernel=True, allow_neg_eigval=self.allow_neg_eigval,
            lower_bound=self.lower_bound, **bounded,
        )  # fmt: skip
        return o, recurrent_state, conv_state

    def _step_gates(self, x: torch.Tensor) -> StepGates:
        g, beta = self._gate_input(x), project(self.b_proj, x)
        beta_scale = 2 if self.allow_neg_eigval else 1
        return StepGates(g, beta, self.A_log, self.dt_bias, beta_scale, rule="KDA", lower_bound=self.lower_bound)

    def _training_gates(self) -> TrainingGates:
        scale = 2 if self.allow_neg_eigval else 1
        return TrainingGates(self.f_proj, self.b_proj, self.A_log, self.dt_bias, scale, "KDA", self.lower_bound)

    def gates(self, x: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        """Decay and write strength at each token of ``x`` ``[B, T, hidden_size]``.

        Returns:
            log decay ``g`` ``[B, T, num_v_heads, head_dim]`` and write strength ``beta`` ``[B, T, num_v_heads]``,
            float32 (float64 for float64).
        """
        g = fused_kda_gate(self._gate_input(x), self.A_log, self.dt_bias, lower_bound=self.lower_bound)
        return g, beta_sigmoid(project(self.b_proj, x), self.allow_neg_eigval)

    def _gate_input(self, x: torch.Tensor) -> torch.Tensor:
        """``[B, T, HV, K]``."""
        return project(self.f_proj, x).view(*x.shape[:2], self.num_v_heads, self.head_k_dim)

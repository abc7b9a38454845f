"""The Gated DeltaProduct layer: several steps of the delta rule for each token."""

from typing import Any, Optional, Tuple

import torch
import torch.nn as nn

from myfla.layers.native_steps import StepGates
from myfla.layers.projections import project
from myfla.layers.recurrent_layer import LayerCall
from myfla.layers.settings import wide_dtype
from myfla.layers.short_convs import ConvLayer
from myfla.modules import FusedRMSNormGated, RMSNorm
from myfla.ops.gated_delta_product import chunk_gated_delta_product, fused_recurrent_gated_delta_product
from myfla.ops.gated_delta_rule.gate import beta_sigmoid, fused_gdn_gate
from myfla.utils.errors import value_error

__all__ = ["GatedDeltaProduct"]

KEYWORDS = (
    "hidden_size", "expand_v", "head_dim", "num_heads", "num_v_heads", "mode", "use_output_gate", "use_short_conv",
    "conv_size", "conv_bias", "layer_idx", "norm_eps", "use_forget_gate", "allow_neg_eigval", "num_householder",
    "backend", "device", "dtype",
)  # fmt: skip


class GatedDeltaProduct(ConvLayer):
    """Gated DeltaProduct (arXiv 2502.10297), with the parameters, results and cache protocol of fla 0.6.0's layer.

    For each token the state decays once and then makes ``n = num_householder`` steps of the delta rule, each with a
    separate key, value and write strength, so that its transition is a product of n Householder matrices::

        S <- exp(g) S;  for j in 1..n: S <- S + k_j (beta_j (v_j - S^T k_j))^T;  o = S^T q / sqrt(head_dim)
        y = o_proj(RMSNorm(o) * silu(g_proj(x)))

    ``q`` and ``k`` have length one, ``g = -exp(A_log) softplus(a_proj(x) + dt_bias)``,
    ``beta = sigmoid(b_proj(x))``. ``q``, ``k`` and ``v`` pass a causal depthwise convolution with SiLU first. States
    are summed in float32, or in float64 for a float64 layer; outputs have the input's dtype.

    Args:
        hidden_size: channels in and out, D.
        expand_v: value size over key size; ``head_dim * expand_v`` must be an integer.
        head_dim: key size of one head, K.
        num_heads: query and key heads, H.
        num_v_heads: value heads, HV, a multiple of H; H if not given.
        mode: ``"chunk"`` or ``"fused_recurrent"``, see `GatedDeltaNet`. Both give the same result up to rounding.
        use_output_gate: gate the output.
        use_short_conv: convolve q, k and v; without it only SiLU is applied.
        conv_size: taps of the convolutions, W.
        conv_bias: give them a bias.
        layer_idx: the layer's slot in a cache; needed to use one.
        norm_eps: added to the mean square in the norm.
        use_forget_gate: let the state decay.
        allow_neg_eigval: double beta, so that each step can reflect (arXiv 2411.12537).
        num_householder: steps of the rule for each token, n.
        backend: which code computes the rule, see `myfla.backends`.
        device, dtype: of the parameters. ``A_log`` and the norm without a gate stay float32 in a half-precision layer.

    Raises:
        ValueError: an argument out of range, or arguments that do not fit each other.
        BackendError: a backend that is unknown or not available here.
        TypeError: an unknown keyword.

    Example:
        >>> layer = GatedDeltaProduct(hidden_size=32, head_dim=8, num_heads=2, num_householder=3, layer_idx=0)
        >>> layer(torch.randn(2, 10, 32))[0].shape
        torch.Size([2, 10, 32])
    """

    who = "GatedDeltaProduct"
    shown = ("hidden_size", "head_dim", "num_heads", "num_v_heads", "expand_v", "mode", "use_output_gate",
             "use_short_conv", "conv_size", "conv_bias", "layer_idx", "norm_eps", "use_forget_gate",
             "allow_neg_eigval", "num_householder")
    use_output_gate: bool
    use_forget_gate: bool
    allow_neg_eigval: bool
    num_householder: int
    decay_after = "a_proj"

    def __init__(
        self,
        hidden_size: int = 2048,
        expand_v: float = 2,
        head_dim: int = 256,
        num_heads: int = 6,
        num_v_heads: Optional[int] = None,
        mode: str = "chunk",
        use_output_gate: bool = True,
        use_short_conv: bool = True,
        conv_size: int = 4,
        conv_bias: bool = False,
        layer_idx: Optional[int] = None,
        norm_eps: float = 1e-5,
        use_forget_gate: bool = True,
        allow_neg_eigval: bool = True,
        num_householder: int = 2,
        *,
        backend: str = "auto",
        device: Any = None,
        dtype: Optional[torch.dtype] = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        if isinstance(num_householder, bool) or not isinstance(num_householder, int) or num_householder < 1:
            raise value_error(self.who, "num_householder", "must be a positive integer", num_householder)
        self._settle(
            KEYWORDS, kwargs, ("use_output_gate", "use_forget_gate", "allow_neg_eigval"),
            hidden_size=hidden_size, expand_v=expand_v, head_dim=head_dim, num_heads=num_heads,
            num_v_heads=num_v_heads, mode=mode, use_output_gate=use_output_gate, use_short_conv=use_short_conv,
            conv_size=conv_size, conv_bias=conv_bias, layer_idx=layer_idx, norm_eps=norm_eps,
            use_forget_gate=use_forget_gate, allow_neg_eigval=allow_neg_eigval, num_householder=num_householder,
            backend=backend,
        )  # fmt: skip
        steps = num_householder
        self.conv_channels = (self.key_dim, self.key_dim * steps, self.value_dim * steps)
        new = {"device": device, "dtype": dtype}
        self._build_qkv(new)
        self.b_proj = nn.Linear(hidden_size, self.num_v_heads * steps, bias=False, **new)
        if use_forget_gate:
            self.a_proj = nn.Linear(hidden_size, self.num_v_heads, bias=False, **new)
            self.A_log = nn.Parameter(torch.empty(self.num_v_heads, device=device, dtype=wide_dtype(dtype)))
            self.dt_bias = nn.Parameter(torch.empty(self.num_v_heads, **new))
            self._reset_decay()
        self._build_convs(new)
        if use_output_gate:
            self.g_proj = nn.Linear(hidden_size, self.value_dim, bias=False, **new)
            self.o_norm = FusedRMSNormGated(self.head_v_dim, eps=norm_eps, **new)
        else:
            self.o_norm = RMSNorm(self.head_v_dim, eps=norm_eps, device=device, dtype=wide_dtype(dtype))
        self.o_proj = nn.Linear(self.value_dim, hidden_size, bias=False, **new)

    def _mix(self, x: torch.Tensor, call: LayerCall) -> Tuple[torch.Tensor, Optional[torch.Tensor], Any]:
        (q, k, v), conv_state = self._qkv(x, call)
        batch, time, n = x.shape[0], x.shape[1], self.num_householder
        g, beta = self.gates(x)
        o, recurrent_state = self._run_rule(
            chunk_gated_delta_product, fused_recurrent_gated_delta_product, call,
            q=q.view(batch, time, self.num_heads, self.head_k_dim),
            k=k.reshape(batch, time * n, self.num_heads, self.head_k_dim),
            v=v.reshape(batch, time * n, self.num_v_heads, self.head_v_dim),
            g=g, beta=beta.reshape(batch, time * n, self.num_v_heads), num_householder=n, use_qk_l2norm_in_kernel=True,
        )  # fmt: skip
        return o, recurrent_state, conv_state

    def _step_gates(self, x: torch.Tensor) -> StepGates:
        g, A_log, dt_bias = (project(self.a_proj, x), self.A_log, self.dt_bias) if self.use_forget_gate else (None,) * 3
        beta_scale = 2 if self.allow_neg_eigval else 1
        return StepGates(g, project(self.b_proj, x), A_log, dt_bias, beta_scale, tokens=self.num_householder)

    def gates(self, x: torch.Tensor) -> Tuple[Optional[torch.Tensor], torch.Tensor]:
        """Decay and write strength at each token of ``x`` ``[B, T, hidden_size]``.

        Returns:
            log decay ``g`` ``[B, T, num_v_heads]``, None without a forget gate, and write strengths ``beta``
            ``[B, T, num_householder, num_v_heads]``, float32 (float64 for float64).
        """
        g = fused_gdn_gate(project(self.a_proj, x), self.A_log, self.dt_bias) if self.use_forget_gate else None
        beta = beta_sigmoid(project(self.b_proj, x), self.allow_neg_eigval)
        return g, beta.view(*x.shape[:2], self.num_householder, self.num_v_heads)

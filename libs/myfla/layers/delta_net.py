"""The DeltaNet layer: the delta rule without decay."""

from typing import Any, Optional, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F

from myfla.backends import check_backend
from myfla.layers.feature_maps import elu_p1
from myfla.layers.native_steps import StepGates
from myfla.layers.projections import project, silu
from myfla.layers.recurrent_layer import LayerCall
from myfla.layers.settings import check_settings, expanded, split_heads_of, wide_dtype
from myfla.layers.short_convs import ConvLayer, Parts
from myfla.layers.training_parts import TrainingGates
from myfla.modules import FusedRMSNormGated, RMSNorm
from myfla.ops.delta_rule import chunk_delta_rule, fused_recurrent_delta_rule
from myfla.ops.gated_delta_rule.gate import beta_sigmoid
from myfla.utils.errors import refuse_unknown

__all__ = ["DeltaNet"]

KEYWORDS = (
    "mode", "d_model", "hidden_size", "expand_k", "expand_v", "num_heads", "use_beta", "use_gate", "use_short_conv",
    "conv_size", "conv_bias", "allow_neg_eigval", "layer_idx", "qk_activation", "qk_norm", "norm_eps", "backend",
    "device", "dtype",
)  # fmt: skip
ACTIVATIONS = ("silu", "relu", "elu", "identity")
NORMS = ("l2", "sum")


class DeltaNet(ConvLayer):
    """DeltaNet (arXiv 2406.06484), with the parameters, results and cache protocol of fla 0.6.0's layer.

    For each head, with write strength ``beta = sigmoid(b_proj(x))``::

        S <- S + k (beta (v - S^T k))^T;  o = S^T q / sqrt(K)
        y = o_proj(RMSNorm(o))

    ``q``, ``k`` and ``v`` pass a causal depthwise convolution first. States are summed in float32, or in float64 for a
    float64 layer; outputs have the input's dtype.

    Args:
        mode: ``"chunk"`` or ``"fused_recurrent"``, see `GatedDeltaNet`. Both give the same result up to rounding.
        d_model: another name of ``hidden_size``.
        hidden_size: channels in and out, D.
        expand_k, expand_v: size of all keys, and of all values, over ``hidden_size``.
        num_heads: heads, H.
        use_beta: learn write strengths; without, they are 1.
        use_gate: gate the output by ``silu(g_proj(x))``.
        use_short_conv: convolve q, k and v; without it only the activations are applied.
        conv_size: taps of the convolutions, W.
        conv_bias: give them a bias.
        allow_neg_eigval: double beta, so that the state can change sign (arXiv 2411.12537).
        layer_idx: the layer's slot in a cache; needed to use one.
        qk_activation: of q and k: ``"silu"``, ``"relu"``, ``"elu"`` (plus one) or ``"identity"``.
        qk_norm: ``"l2"`` or ``"sum"``: q and k over their length, or over the sum of their absolute values.
        norm_eps: added to the mean square in the norm.
        backend: which code computes the rule, see `myfla.backends`.
        device, dtype: of the parameters. The norm without a gate stays float32 in a half-precision layer.

    Raises:
        ValueError: an argument out of range, or arguments that do not fit each other.
        BackendError: a backend that is unknown or not available here.
        TypeError: an unknown keyword.

    Example:
        >>> layer = DeltaNet(hidden_size=32, num_heads=2, layer_idx=0)
        >>> layer(torch.randn(2, 10, 32))[0].shape
        torch.Size([2, 10, 32])
    """

    who = "DeltaNet"
    shown = ("hidden_size", "expand_k", "expand_v", "num_heads", "mode", "use_beta", "use_gate", "use_short_conv",
             "conv_size", "conv_bias", "allow_neg_eigval", "layer_idx", "qk_activation", "qk_norm", "norm_eps")

    def __init__(
        self,
        mode: str = "chunk",
        d_model: Optional[int] = None,
        hidden_size: int = 1024,
        expand_k: float = 1.0,
        expand_v: float = 1.0,
        num_heads: int = 4,
        use_beta: bool = True,
        use_gate: bool = False,
        use_short_conv: bool = True,
        conv_size: int = 4,
        conv_bias: bool = False,
        allow_neg_eigval: bool = False,
        layer_idx: Optional[int] = None,
        qk_activation: str = "silu",
        qk_norm: str = "l2",
        norm_eps: float = 1e-5,
        *,
        backend: str = "auto",
        device: Any = None,
        dtype: Optional[torch.dtype] = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        refuse_unknown(self.who, kwargs, KEYWORDS, ("chunk_size", "fuse_norm", "use_output_norm"))
        hidden_size = hidden_size if d_model is None else d_model
        self.mode, self.layer_idx, self.norm_eps = mode, layer_idx, norm_eps
        self.hidden_size, self.expand_k, self.expand_v = hidden_size, expand_k, expand_v
        self.num_heads = self.num_v_heads = num_heads
        self.use_beta, self.use_gate, self.allow_neg_eigval = use_beta, use_gate, allow_neg_eigval
        self.use_short_conv, self.conv_size, self.conv_bias = use_short_conv, conv_size, conv_bias
        self.qk_activation, self.qk_norm = qk_activation, qk_norm
        self.backend = check_backend(self.who, backend)
        check_settings(
            self.who, self, sizes=("hidden_size", "num_heads", "conv_size"),
            flags=("use_beta", "use_gate", "use_short_conv", "conv_bias", "allow_neg_eigval"),
            choices={"qk_activation": ACTIVATIONS, "qk_norm": NORMS},
        )  # fmt: skip
        self.key_dim = expanded(self.who, "expand_k", expand_k, hidden_size, "hidden_size")
        self.value_dim = expanded(self.who, "expand_v", expand_v, hidden_size, "hidden_size")
        self.head_k_dim = split_heads_of(self.who, "hidden_size * expand_k", self.key_dim, num_heads)
        self.head_v_dim = split_heads_of(self.who, "hidden_size * expand_v", self.value_dim, num_heads)
        self.conv_channels = (self.key_dim, self.key_dim, self.value_dim)

        new = {"device": device, "dtype": dtype}
        self._build_qkv(new)
        if use_beta:
            self.b_proj = nn.Linear(hidden_size, num_heads, bias=False, **new)
        of_keys = "silu" if qk_activation == "silu" else None
        self._build_convs(new, (of_keys, of_keys, "silu"))
        if use_gate:
            self.g_proj = nn.Linear(hidden_size, self.value_dim, bias=False, **new)
            self.o_norm = FusedRMSNormGated(self.head_v_dim, eps=norm_eps, **new)
        else:
            self.o_norm = RMSNorm(self.head_v_dim, eps=norm_eps, device=device, dtype=wide_dtype(dtype))
        self.o_proj = nn.Linear(self.value_dim, hidden_size, bias=False, **new)

    def _without_convs(self, parts: Parts) -> Parts:
        q, k, v = parts
        return (silu(q), silu(k), silu(v)) if self.qk_activation == "silu" else (q, k, silu(v))

    def _mix(self, x: torch.Tensor, call: LayerCall) -> Tuple[torch.Tensor, Optional[torch.Tensor], Any]:
        (q, k, v), conv_state = self._qkv(x, call)
        q, k = (self._feature_map(t.view(*x.shape[:2], self.num_heads, self.head_k_dim)) for t in (q, k))
        o, recurrent_state = self._run_rule(
            chunk_delta_rule, fused_recurrent_delta_rule, call,
            q=q, k=k, v=v.view(*x.shape[:2], self.num_heads, self.head_v_dim), beta=self.gates(x),
            use_qk_l2norm_in_kernel=self.qk_norm == "l2",
        )  # fmt: skip
        return o, recurrent_state, conv_state

    def _step_gates(self, x: torch.Tensor) -> Optional[StepGates]:
        if self.qk_activation != "silu" or self.qk_norm != "l2":
            return None
        return StepGates(None, self.gates(x))

    def _training_gates(self) -> Optional[TrainingGates]:
        if self.qk_activation != "silu" or self.qk_norm != "l2" or not self.use_beta:
            return None
        return TrainingGates(None, self.b_proj, None, None, 2 if self.allow_neg_eigval else 1)

    def gates(self, x: torch.Tensor) -> torch.Tensor:
        """Write strengths ``beta [B, T, num_heads]`` at each token of ``x``, float32 (float64 for float64)."""
        if self.use_beta:
            return beta_sigmoid(project(self.b_proj, x), self.allow_neg_eigval)
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        return x.new_full((*x.shape[:2], self.num_heads), 2.0 if self.allow_neg_eigval else 1.0, dtype=wide)

    def _feature_map(self, x: torch.Tensor) -> torch.Tensor:
        if self.qk_activation == "relu":
            x = x.relu()
        elif self.qk_activation == "elu":
            x = elu_p1(x)
        return F.normalize(x, p=1.0, dim=-1, eps=1e-6).to(x.dtype) if self.qk_norm == "sum" else x

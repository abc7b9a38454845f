"""The Mamba-2 layer: one projection, one short convolution, the state space dual, a gated norm."""

import math
from typing import Any, Optional, Tuple

import torch
import torch.nn as nn

from myfla.backends import check_backend
from myfla.layers.decay import reset_A_log, reset_dt_bias
from myfla.layers.feature_maps import ACTIVATIONS
from myfla.layers.layer_inputs import check_state
from myfla.layers.projections import project
from myfla.layers.recurrent_layer import LayerCall, RecurrentLayer
from myfla.layers.settings import check_settings, expanded, split_heads_of, wide_dtype
from myfla.modules import ShortConvolution
from myfla.modules.layernorm_gated import RMSNormGated
from myfla.ops.ssd import chunk_ssd, fused_recurrent_ssd
from myfla.ops.ssd.inputs import time_steps
from myfla.utils.dtypes import accumulation_dtype
from myfla.utils.errors import refuse_unknown, value_error

__all__ = ["Mamba2"]

KEYWORDS = (
    "num_heads", "head_dim", "hidden_size", "state_size", "expand", "n_groups", "conv_kernel", "conv_init",
    "use_conv_bias", "hidden_act", "A_init_range", "D_has_hdim", "rmsnorm", "norm_before_gate", "dt_min", "dt_max",
    "dt_init_floor", "dt_limit", "use_bias", "norm_eps", "chunk_size", "layer_idx", "backend", "device", "dtype",
)  # fmt: skip
SIZES = ("hidden_size", "head_dim", "state_size", "n_groups", "conv_kernel", "chunk_size")
FLAGS = ("use_conv_bias", "D_has_hdim", "rmsnorm", "norm_before_gate", "use_bias")
OFFICIAL_BACKENDS = ("cuda", "triton")
"""Backends of the convolution in the official layer; here both mean ``auto``."""


class Mamba2(RecurrentLayer):
    """Mamba-2 (arXiv 2405.21060), with the parameters, results and cache protocol of fla 0.6.0's layer.

    ``in_proj`` gives a gate z, what passes a causal depthwise convolution and ``hidden_act`` (inputs u, and B and C of
    every group), and time steps. For each head, with ``dt = clamp(softplus(dt + dt_bias), *dt_limit)`` and
    ``A = -exp(A_log)``::

        S <- exp(dt A) S + B (dt u)^T;  o = S^T C + D u
        y = out_proj(RMSNorm(o * silu(z)))

    States are summed in float32, or in float64 for a float64 layer; outputs have the input's dtype. In a cache a state
    is ``[B, num_heads, state_size, head_dim]``, as in all layers here; `Cache.to_fla` gives the official order.

    Args:
        num_heads: heads; ``expand * hidden_size / head_dim``, which is what it must be, if not given.
        head_dim: size of one head's values, V.
        hidden_size: channels in and out, D.
        state_size: size of one head's keys, K.
        expand: channels of all heads over ``hidden_size``.
        n_groups: pairs of B and C, which heads share; must divide num_heads.
        conv_kernel: taps of the convolution, W.
        conv_init: draw the taps uniformly from ``-conv_init`` to ``conv_init``; as PyTorch does if not given.
        use_conv_bias: give the convolution a bias.
        hidden_act: activation after the convolution, and of the gate without ``rmsnorm``: ``"silu"``, ``"swish"``,
            ``"relu"``, ``"sigmoid"``, ``"logsigmoid"``, ``"sqrelu"`` or ``"gelu"``.
        A_init_range: ``exp(A_log)`` is drawn from it.
        D_has_hdim: give D a number for every channel, not one for each head.
        rmsnorm: normalise the gated outputs, each group for itself; otherwise they are ``o * hidden_act(z)``.
        norm_before_gate: ``RMSNorm(o) * silu(z)`` instead.
        dt_min, dt_max, dt_init_floor: time steps begin between the first two, at least at the third.
        dt_limit: least and largest time step.
        use_bias: give both projections a bias.
        norm_eps: added to the mean square in the norm.
        chunk_size: accepted; the op chooses its own, which changes rounding only.
        layer_idx: the layer's slot in a cache; needed to use one.
        backend: which code computes the rule, see `myfla.backends`; fla's own ``"cuda"`` and ``"triton"``, which choose
            its convolution, are ``"auto"``.
        device, dtype: of the parameters. ``A_log`` stays float32 in a half-precision layer.

    Raises:
        ValueError: an argument out of range, or arguments that do not fit each other.
        BackendError: a backend that is unknown or not available here.
        TypeError: an unknown keyword.

    Example:
        >>> layer = Mamba2(hidden_size=32, head_dim=8, state_size=16, layer_idx=0)
        >>> layer(torch.randn(2, 10, 32))[0].shape
        torch.Size([2, 10, 32])
    """

    who = "Mamba2"
    shown = ("hidden_size", "num_heads", "head_dim", "state_size", "expand", "n_groups", "conv_kernel", "use_conv_bias",
             "hidden_act", "D_has_hdim", "rmsnorm", "norm_before_gate", "dt_limit", "use_bias",
             "layer_idx", "norm_eps")
    mode = "chunk"
    use_short_conv = True

    def __init__(
        self,
        num_heads: Optional[int] = None,
        head_dim: int = 64,
        hidden_size: int = 2048,
        state_size: int = 128,
        expand: float = 2,
        n_groups: int = 1,
        conv_kernel: int = 4,
        conv_init: Optional[float] = None,
        use_conv_bias: bool = True,
        hidden_act: str = "silu",
        A_init_range: Tuple[float, float] = (1, 16),
        D_has_hdim: bool = False,
        rmsnorm: bool = True,
        norm_before_gate: bool = False,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        dt_limit: Tuple[float, float] = (0.0, math.inf),
        use_bias: bool = False,
        norm_eps: float = 1e-5,
        chunk_size: int = 256,
        layer_idx: Optional[int] = None,
        backend: str = "auto",
        *,
        device: Any = None,
        dtype: Optional[torch.dtype] = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        refuse_unknown(self.who, kwargs, KEYWORDS)
        self.hidden_size, self.expand, self.head_dim, self.n_groups = hidden_size, expand, head_dim, n_groups
        self.state_size = self.ssm_state_size = state_size
        self.conv_kernel = self.conv_kernel_size = conv_kernel
        self.hidden_act = self.activation = hidden_act
        self.use_conv_bias, self.D_has_hdim, self.use_bias = use_conv_bias, D_has_hdim, use_bias
        self.rmsnorm, self.norm_before_gate, self.norm_eps = rmsnorm, norm_before_gate, norm_eps
        self.chunk_size, self.layer_idx = chunk_size, layer_idx
        self.backend = check_backend(self.who, "auto" if backend in OFFICIAL_BACKENDS else backend)
        check_settings(self.who, self, SIZES, FLAGS, {"hidden_act": tuple(ACTIVATIONS)})
        for field, size in (("conv_init", 1.0 if conv_init is None else conv_init), ("dt_init_floor", dt_init_floor)):
            if not _is_number(size) or not 0 < size < math.inf:
                raise value_error(self.who, field, "must be a positive number", size)
        self.conv_init, self.dt_init_floor = conv_init, dt_init_floor
        self.A_init_range = _range(self.who, "A_init_range", A_init_range, positive=True)
        self.dt_min, self.dt_max = _range(self.who, "(dt_min, dt_max)", (dt_min, dt_max), positive=True)
        self.dt_limit = _range(self.who, "dt_limit", dt_limit)
        self.intermediate_size = expanded(self.who, "expand", expand, hidden_size, "hidden_size")
        inferred = self.intermediate_size // head_dim
        if self.intermediate_size % head_dim:
            rule = f"must divide expand * hidden_size = {self.intermediate_size}"
            raise value_error(self.who, "head_dim", rule, head_dim)
        if num_heads not in (None, 0, inferred) or isinstance(num_heads, bool):
            rule = f"times head_dim={head_dim} must be expand * hidden_size = {self.intermediate_size}"
            raise value_error(self.who, "num_heads", rule, num_heads, f"leave it out, or use {inferred}")
        if inferred % n_groups:
            raise value_error(self.who, "n_groups", f"must divide the number of heads, {inferred}", n_groups)
        self.num_heads = self.num_v_heads = inferred
        self.head_k_dim, self.head_v_dim = state_size, head_dim
        self.conv_dim = self.intermediate_size + 2 * n_groups * state_size

        new = {"device": device, "dtype": dtype}
        of_conv = hidden_act if hidden_act in ("silu", "swish") else None
        self.conv1d = ShortConvolution(self.conv_dim, conv_kernel, bias=use_conv_bias, activation=of_conv, **new)
        self._reset_taps()
        self.in_proj = nn.Linear(hidden_size, self.intermediate_size + self.conv_dim + inferred, bias=use_bias, **new)
        self.dt_bias = nn.Parameter(torch.empty(inferred, **new))
        self.A_log = nn.Parameter(torch.empty(inferred, device=device, dtype=wide_dtype(dtype)))
        self.norm = None
        if rmsnorm:
            group = split_heads_of(self.who, "expand * hidden_size", self.intermediate_size, n_groups)
            self.norm = RMSNormGated(self.intermediate_size, norm_eps, group, norm_before_gate, **new)
        self.D = nn.Parameter(torch.empty(self.intermediate_size if D_has_hdim else inferred, **new))
        self._reset_states()
        self.out_proj = nn.Linear(self.intermediate_size, hidden_size, bias=use_bias, **new)

    def reset_parameters(self) -> None:
        """Draw all parameters again, as construction does; call it after ``to_empty`` on a meta-device layer."""
        self.conv1d.reset_parameters()
        self._reset_taps()
        self.in_proj.reset_parameters()
        self._reset_states()
        if self.norm is not None:
            self.norm.reset_parameters()
        self.out_proj.reset_parameters()

    def gates(self, x: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        """Decay and write strength at each token of ``x`` ``[B, T, hidden_size]``.

        Returns:
            log decay ``dt A`` and time step ``dt``, with which inputs are written, ``[B, T, num_heads]`` float32
            (float64 for float64).
        """
        dt = project(self.in_proj, x)[..., -self.num_heads :]
        dtype = accumulation_dtype(dt, self.A_log)
        dt = time_steps(dt, self.dt_bias, True, self.dt_limit, dtype)
        return dt * self._A().to(dtype), dt

    def _mix(self, x: torch.Tensor, call: LayerCall) -> Tuple[torch.Tensor, Optional[torch.Tensor], Any]:
        shape, groups = x.shape[:2], (self.n_groups, self.state_size)
        keys = self.n_groups * self.state_size
        z, mixed, dt = project(self.in_proj, x).split([self.intermediate_size, self.conv_dim, self.num_heads], -1)
        mixed, conv_state = self.conv1d(
            mixed, cache=call.conv_state, output_final_state=call.keep, cu_seqlens=call.cu_seqlens
        )
        if self.conv1d.activation is None:
            mixed = ACTIVATIONS[self.hidden_act](mixed)
        u, B, C = mixed.split([self.intermediate_size, keys, keys], -1)
        o, recurrent_state = self._run_rule(
            chunk_ssd, fused_recurrent_ssd, call, x=u.reshape(*shape, self.num_heads, self.head_dim), dt=dt,
            A=self._A(), B=B.reshape(*shape, *groups), C=C.reshape(*shape, *groups),
            D=self.D.view(-1, self.head_dim) if self.D_has_hdim else self.D, dt_bias=self.dt_bias, dt_softplus=True,
            dt_limit=self.dt_limit,
        )  # fmt: skip
        o = o.reshape(*shape, self.intermediate_size)
        o = o * ACTIVATIONS[self.hidden_act](z) if self.norm is None else self.norm(o, z)
        return o, recurrent_state, conv_state

    def _output(self, x: torch.Tensor, o: torch.Tensor) -> torch.Tensor:
        return project(self.out_proj, o)

    def _A(self) -> torch.Tensor:
        return -self.A_log.to(accumulation_dtype(self.A_log)).exp()

    def _first_weight(self) -> Any:
        return getattr(self.in_proj, "weight", None)

    def _check_conv_state(self, conv: Any, sequences: int, x: torch.Tensor) -> Any:
        axes = (("batch", sequences), ("channels", self.conv_dim), ("taps", self.conv_kernel))
        check_state(self.who, "conv_state", conv, axes, x)
        return conv

    def _reset_taps(self) -> None:
        if self.conv_init is not None and not self.conv1d.weight.is_meta:
            nn.init.uniform_(self.conv1d.weight, -self.conv_init, self.conv_init)

    def _reset_states(self) -> None:
        reset_dt_bias(self.dt_bias, (self.dt_min, self.dt_max), self.dt_init_floor)
        reset_A_log(self.A_log, self.A_init_range)
        setattr(self.D, "_no_weight_decay", True)
        if not self.D.is_meta:
            nn.init.ones_(self.D)


def _is_number(x: Any) -> bool:
    return isinstance(x, (int, float)) and not isinstance(x, bool)


def _range(who: str, field: str, given: Any, positive: bool = False) -> Tuple[float, float]:
    """Two numbers, the smaller first; positive and finite where asked."""
    if isinstance(given, (tuple, list)) and len(given) == 2 and all(map(_is_number, given)):
        low, high = (float(x) for x in given)
        if low <= high and (not positive or 0 < low <= high < math.inf):
            return low, high
    rule = "must be two positive numbers, the smaller first" if positive else "must be two numbers, the smaller first"
    raise value_error(who, field, rule, given)

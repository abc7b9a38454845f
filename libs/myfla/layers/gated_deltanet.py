"""The GatedDeltaNet layer: projections, short convolutions, the gated delta rule, a gated norm."""

import math
import warnings
from typing import Any, Callable, Dict, Optional, Tuple

import torch
import torch.nn as nn

from myfla.backends import check_backend, summary
from myfla.layers.feature_maps import elu_p1, sum_norm
from myfla.layers.gated_deltanet_checks import NAME, ConvStates, check_settings, check_states, value_size
from myfla.layers.half import project, silu
from myfla.layers.layer_inputs import INERT_FORWARD, check_hidden_states, read_layer_state, writes_over
from myfla.layers.token_rows import TokenRows, read_rows
from myfla.layers.utils import update_layer_cache
from myfla.models.utils import Cache
from myfla.modules import FusedRMSNormGated, RMSNorm, ShortConvolution
from myfla.modules.convolution import causal_conv1d
from myfla.ops.gated_delta_rule import chunk_gated_delta_rule, fused_recurrent_gated_delta_rule
from myfla.ops.gated_delta_rule.gate import beta_sigmoid, fused_gdn_gate
from myfla.utils.errors import refuse_unknown
from myfla.utils.tracing import tracing

__all__ = ["GatedDeltaNet", "elu_p1", "sum_norm"]

FORWARD = ("hidden_states", "attention_mask", "past_key_values", "use_cache", "output_attentions", "cu_seqlens")
# Up to so many numbers, one convolution of q, k and v together costs less than three, in spite of the copy.
FUSED_ON_CPU = 2**18


class GatedDeltaNet(nn.Module):
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
        backend: whose code computes the rule: ``"auto"``, ``"naive"``, ``"torch"``, ``"compiled"`` or ``"fla"``; see
            `myfla.backends`.
        device, dtype: of the parameters. ``A_log`` and the norm without a gate stay float32 in a half-precision layer.

    Raises:
        ValueError: an argument out of range, or arguments that do not fit each other.
        BackendError: a backend that is unknown or not to be had here.
        TypeError: an unknown keyword.

    Example:
        >>> layer = GatedDeltaNet(hidden_size=32, head_dim=8, num_heads=2, layer_idx=0)
        >>> y, _, _ = layer(torch.randn(2, 10, 32))
        >>> y.shape
        torch.Size([2, 10, 32])
    """

    chooses_backend = True

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
        self.mode, self.layer_idx = mode, layer_idx
        self.hidden_size, self.expand_v = hidden_size, expand_v
        self.head_dim, self.num_heads = head_dim, num_heads
        self.num_v_heads = num_heads if num_v_heads is None else num_v_heads
        self.use_gate, self.use_short_conv, self.allow_neg_eigval = use_gate, use_short_conv, allow_neg_eigval
        self.conv_size, self.conv_bias, self.norm_eps = conv_size, conv_bias, norm_eps
        self.output_gate_activation = output_gate_activation
        self.backend = check_backend(NAME, backend)
        check_settings(self, kwargs)
        self.head_k_dim, self.head_v_dim = head_dim, value_size(head_dim, expand_v)
        self.key_dim, self.value_dim = num_heads * head_dim, self.num_v_heads * self.head_v_dim

        new = {"device": device, "dtype": dtype}
        wide = {"device": device, "dtype": _wide(dtype)}
        self.q_proj = nn.Linear(hidden_size, self.key_dim, bias=False, **new)
        self.k_proj = nn.Linear(hidden_size, self.key_dim, bias=False, **new)
        self.v_proj = nn.Linear(hidden_size, self.value_dim, bias=False, **new)
        self.a_proj = nn.Linear(hidden_size, self.num_v_heads, bias=False, **new)
        self.b_proj = nn.Linear(hidden_size, self.num_v_heads, bias=False, **new)
        self.A_log = nn.Parameter(torch.empty(self.num_v_heads, **wide))
        self.dt_bias = nn.Parameter(torch.empty(self.num_v_heads, **new))
        self._reset_decay()
        if use_short_conv:
            conv = dict(kernel_size=conv_size, bias=conv_bias, activation="silu", **new)
            self.q_conv1d = ShortConvolution(self.key_dim, **conv)
            self.k_conv1d = ShortConvolution(self.key_dim, **conv)
            self.v_conv1d = ShortConvolution(self.value_dim, **conv)
        else:
            warnings.warn(f"{NAME}: use_short_conv=False costs much quality in most tasks", stacklevel=2)
        if use_gate:
            self.g_proj = nn.Linear(hidden_size, self.value_dim, bias=False, **new)
            self.o_norm: nn.Module = FusedRMSNormGated(
                self.head_v_dim, eps=norm_eps, activation=output_gate_activation, **new)
        else:
            self.o_norm = RMSNorm(self.head_v_dim, eps=norm_eps, **wide)
        self.o_proj = nn.Linear(self.value_dim, hidden_size, bias=False, **new)

    def reset_parameters(self) -> None:
        """Draw all parameters anew, as construction does; call it after ``to_empty`` on a meta-device layer."""
        children: Dict[str, Any] = dict(self.named_children())
        first = ("q_proj", "k_proj", "v_proj", "a_proj", "b_proj")
        for name in first:
            children.pop(name).reset_parameters()
        self._reset_decay()
        for child in children.values():
            child.reset_parameters()

    def extra_repr(self) -> str:
        parts = ["hidden_size", "head_dim", "num_heads", "num_v_heads", "expand_v", "mode", "use_gate",
                 "use_short_conv", "allow_neg_eigval", "conv_size", "conv_bias", "layer_idx", "norm_eps",
                 "output_gate_activation"]
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in parts)
        return f"{shown}, backend={summary(self.backend, self.A_log.device)}"

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: Optional[torch.Tensor] = None,
        past_key_values: Optional[Any] = None,
        use_cache: Optional[bool] = False,
        output_attentions: Optional[bool] = False,
        **kwargs: Any,
    ) -> Tuple[torch.Tensor, None, Optional[Any]]:
        """Mix a sequence along time.

        Args:
            hidden_states: ``[B, T, hidden_size]``; T may be 0.
            attention_mask: ``[B, T]`` of 0 and 1, or longer (its last T columns count). Pads may stand anywhere and
                hold anything, NaN too; they are taken out, so that states and outputs are those of the tokens alone.
            past_key_values: a `Cache` to go on from. With ``use_cache`` this layer's states in it are replaced and
                its tokens counted; without, it is read only.
            use_cache: keep the final states.
            output_attentions: accepted and ignored.
            cu_seqlens: (keyword) ``[N + 1]`` int offsets of N sequences packed in one row; the mask is then ignored.

        Returns:
            ``(y, None, past_key_values)`` with y ``[B, T, hidden_size]``, zero at pads.

        Raises:
            ValueError: an input, mask or offsets of the wrong shape, dtype or device.
            CacheError: a cache of another layer, batch, layout or device.
            TypeError: an unknown keyword.
        """
        cu_seqlens = kwargs.pop("cu_seqlens", None)
        refuse_unknown(f"{NAME}.forward", kwargs, FORWARD, INERT_FORWARD)
        check_hidden_states(NAME, hidden_states, self.hidden_size, getattr(self.q_proj, "weight", None))
        rows = read_rows(NAME, hidden_states, attention_mask, cu_seqlens)
        x, cu_seqlens = rows.pack(hidden_states), rows.cu_seqlens
        needed = ("recurrent_state", "conv_state") if self.use_short_conv else ("recurrent_state",)
        last = read_layer_state(NAME, self, past_key_values, needed)
        recurrent_state, conv_state = rows.widen(check_states(self, last, rows.sequences, x))
        keep = bool(use_cache) and past_key_values is not None

        q, k, v, conv_state = self._qkv(x, conv_state, keep, cu_seqlens)
        op: Callable[..., Tuple[torch.Tensor, Optional[torch.Tensor]]] = chunk_gated_delta_rule
        more: Dict[str, Any] = {}
        if not self._uses_chunks(rows.time):
            op = fused_recurrent_gated_delta_rule
            more = {"inplace_final_state": keep and writes_over(past_key_values, recurrent_state)}
        o, recurrent_state = op(
            q=q, k=k, v=v, g=project(self.a_proj, x), beta=project(self.b_proj, x), initial_state=recurrent_state,
            output_final_state=keep, use_qk_l2norm_in_kernel=True, use_gate_in_kernel=True, A_log=self.A_log,
            dt_bias=self.dt_bias, use_beta_sigmoid_in_kernel=True, allow_neg_eigval=self.allow_neg_eigval,
            cu_seqlens=cu_seqlens, backend=self.backend, **more,
        )  # fmt: skip
        if keep:
            recurrent_state, conv_state = rows.narrow((recurrent_state, conv_state))
            self._write_cache(past_key_values, recurrent_state, conv_state, rows)
        if self.use_gate:
            o = self.o_norm(o, project(self.g_proj, x).view(o.shape))
        else:
            o = self.o_norm(o)
        y = project(self.o_proj, o.reshape(*o.shape[:2], self.value_dim))
        return rows.unpack(y), None, past_key_values

    def gates(self, x: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        """What the layer does with its state at each token of ``x`` ``[B, T, hidden_size]``.

        Returns:
            log decay ``g`` and write strength ``beta``, ``[B, T, num_v_heads]`` float32 (float64 for float64).
        """
        g = fused_gdn_gate(project(self.a_proj, x), self.A_log, self.dt_bias)
        return g, beta_sigmoid(project(self.b_proj, x), self.allow_neg_eigval)

    def _uses_chunks(self, q_len: int) -> bool:
        if tracing():  # both ops take the same form, but for one token; no graph may depend on a threshold
            return q_len != 1
        if torch.is_grad_enabled() or self.training:
            return True
        return q_len > 64 and self.mode == "chunk"

    def _use_fused_qkv_conv(self, last_state: Any = None, use_cache: Any = None, cu_seqlens: Any = None) -> bool:
        """Whether the three convolutions can run as one (official name; here states and offsets are no hindrance)."""
        first, *others = convs = (self.q_conv1d, self.k_conv1d, self.v_conv1d)
        if any(type(c) is not ShortConvolution or c._forward_hooks or c._forward_pre_hooks for c in convs):
            return False
        return all(c.activation == first.activation and c.kernel_size == first.kernel_size for c in others)

    def _qkv(
        self, x: torch.Tensor, conv_state: ConvStates, keep: bool, cu_seqlens: Optional[torch.Tensor]
    ) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor, Optional[ConvStates]]:
        """Queries, keys ``[B, T, H, K]``, values ``[B, T, HV, V]``, and the convolutions' new states."""
        parts: Any = (project(self.q_proj, x), project(self.k_proj, x), project(self.v_proj, x))
        after: Optional[ConvStates] = None
        if not self.use_short_conv:
            parts = [silu(part) for part in parts]
        else:
            rows = x.shape[0] * x.shape[1] + (0 if conv_state[0] is None else len(conv_state[0]) * self.conv_size)
            small = x.is_cuda or rows * (2 * self.key_dim + self.value_dim) <= FUSED_ON_CPU
            fused = small and self._use_fused_qkv_conv(conv_state, keep, cu_seqlens)
            parts, after = (self._one_conv if fused else self._three_convs)(parts, conv_state, keep, cu_seqlens)
        q, k, v = parts
        q, k = (t.view(*x.shape[:2], self.num_heads, self.head_k_dim) for t in (q, k))
        return q, k, v.view(*x.shape[:2], self.num_v_heads, self.head_v_dim), after

    def _three_convs(self, parts: Any, states: ConvStates, keep: bool, cu_seqlens: Optional[torch.Tensor]) -> Any:
        convs = (self.q_conv1d, self.k_conv1d, self.v_conv1d)
        done = [
            conv(part, cache=state, output_final_state=keep, cu_seqlens=cu_seqlens)
            for conv, part, state in zip(convs, parts, states)
        ]
        return tuple(zip(*done))

    def _one_conv(self, parts: Any, states: ConvStates, keep: bool, cu_seqlens: Optional[torch.Tensor]) -> Any:
        convs = (self.q_conv1d, self.k_conv1d, self.v_conv1d)
        biases = [conv.bias for conv in convs if conv.bias is not None]
        past = [state for state in states if state is not None]
        mixed, state = causal_conv1d(
            torch.cat(parts, dim=-1),
            weight=torch.cat([conv.weight.squeeze(1) for conv in convs]),
            bias=torch.cat(biases) if biases else None,
            initial_state=torch.cat(past, dim=1) if past else None,
            output_final_state=keep, activation=convs[0].activation, cu_seqlens=cu_seqlens,
        )  # fmt: skip
        sizes = [self.key_dim, self.key_dim, self.value_dim]
        return mixed.split(sizes, dim=-1), None if state is None else state.split(sizes, dim=1)

    def _write_cache(self, cache: Any, recurrent_state: Optional[torch.Tensor], conv_state: Optional[ConvStates],
                     rows: TokenRows) -> None:
        real = {"lengths": rows.lengths()} if isinstance(cache, Cache) and rows.cu_seqlens is not None else {}
        update_layer_cache(
            self, cache, recurrent_state=recurrent_state, conv_state=conv_state, offset=rows.time, **real
        )

    def _reset_decay(self) -> None:
        """A uniform in (0, 16); time steps log-uniform in (0.001, 0.1), through the inverse of softplus."""
        for parameter in (self.A_log, self.dt_bias):
            setattr(parameter, "_no_weight_decay", True)
        if self.A_log.is_meta:  # there is nothing to draw, and the attempt loads torch's compiler, which takes seconds
            return
        with torch.no_grad():
            size, device = self.A_log.shape, self.A_log.device
            self.A_log.copy_(torch.empty(size, device=device, dtype=torch.float32).uniform_(0, 16).log())
            low, high = math.log(0.001), math.log(0.1)
            step = (torch.rand(size, device=device) * (high - low) + low).exp().clamp(min=1e-4)
            self.dt_bias.copy_(step + torch.log(-torch.expm1(-step)))


def _wide(dtype: Optional[torch.dtype]) -> torch.dtype:
    return torch.float64 if (dtype or torch.get_default_dtype()) == torch.float64 else torch.float32

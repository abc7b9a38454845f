"""The RWKV-7 attention layer: token shift, low-rank gates, the delta rule with per-channel decay, a gated norm."""

import math
from typing import Any, Optional, Tuple, Union, cast

import torch
import torch.nn as nn

from myfla.backends import check_backend, summary
from myfla.layers.layer_inputs import (
    INERT_FORWARD,
    check_hidden_states,
    check_state,
    read_layer_state,
    writes_over,
)
from myfla.layers.lora import LoRA
from myfla.layers.projections import project
from myfla.layers.recurrent_layer import LayerCall
from myfla.layers.rwkv7_core import Projected, mix_time, mix_tokens
from myfla.layers.rwkv7_init import reset_rwkv7
from myfla.layers.rwkv7_sizes import check_depth, head_sizes, low_rank
from myfla.layers.token_rows import read_rows
from myfla.layers.utils import update_layer_cache
from myfla.models.utils import Cache
from myfla.modules.layernorm import GroupNorm
from myfla.modules.token_shift import token_shift
from myfla.ops.rwkv7.key_gates import STRONGEST_DECAY
from myfla.utils.dtypes import accumulation_dtype
from myfla.utils.errors import refuse_unknown, value_error
from myfla.utils.tracing import is_one, tracing

__all__ = ["RWKV7Attention"]

NAME = "RWKV7Attention"
KEYWORDS = (
    "mode", "hidden_size", "head_dim", "num_heads", "decay_low_rank_dim", "gate_low_rank_dim", "a_low_rank_dim",
    "v_low_rank_dim", "elementwise_affine", "norm_eps", "layer_idx", "fuse_norm", "value_dim", "num_hidden_layers",
    "backend", "device", "dtype",
)  # fmt: skip
FORWARD = (
    "hidden_states", "attention_mask", "past_key_values", "use_cache", "output_attentions", "v_first", "cu_seqlens",
)  # fmt: skip
MODES = ("chunk", "fused_recurrent")


class RWKV7Attention(nn.Module):
    """RWKV-7's time mixing (arXiv 2503.14456), with the parameters, results and cache protocol of fla 0.6.0's layer.

    Each of six inputs mixes a token with the one before it, ``x_i = x + (x_before - x) mix_i``. For each head, with
    ``w = exp(-exp(-0.5) sigmoid(w_lora(x_w)))``, ``a = sigmoid(a_lora(x_a))``, ``kk = k k_k`` scaled to length one and
    ``k <- k (1 + (a - 1) k_a)``::

        S <- diag(w) S - (kk a)(kk^T S)^T + k v^T;   o = S^T r
        y = o_proj((GroupNorm(o) + (sum r k r_k) v) * g_lora(x_g))

    In every layer but the first, v is mixed with the first layer's: ``v + (v_first - v) sigmoid(v_lora(x_v))``.
    States are summed in float32, or in float64 for a float64 layer; outputs have the input's dtype.

    float16 has a small range: o and ``(sum r k r_k) v`` grow with the third power of the input, so a norm should
        precede the layer. On a CPU o is kept in float32 until its norm; the result is finite as long as the input of
        ``o_proj`` is below 65504 (with initial weights, for inputs of a standard deviation of up to 200). On a GPU o
        itself must be below 65504, as in fla.

    Args:
        mode: ``"chunk"`` or ``"fused_recurrent"``: the form for long inputs in evaluation without autograd. With
            autograd or in training mode it is always ``"chunk"``, else below 64 steps ``"fused_recurrent"``. Both
            give the same result up to rounding.
        hidden_size: channels in and out, D.
        head_dim: key size of one head, K. If given, ``num_heads`` is not used.
        num_heads: heads, H; used when ``head_dim`` is None.
        decay_low_rank_dim, gate_low_rank_dim, a_low_rank_dim, v_low_rank_dim: sizes of the bottlenecks; from
            ``hidden_size`` and ``head_dim`` if not given.
        elementwise_affine: whether the norm has a weight and a bias.
        norm_eps: the norm adds ``head_dim * norm_eps`` to the variance.
        layer_idx: the layer's number and its slot in a cache. Layer 0 returns its values as ``v_first``, the other
            layers need it. None: a single layer, for which ``v_first`` is optional.
        fuse_norm: the official choice between two norms and two ways to scale kk: with it ``1e-6`` is added to its
            squared length, without it lengths below ``1e-12`` count as that.
        value_dim: channels of all values together; ``hidden_size`` by default.
        num_hidden_layers: layers of the model, for the initialisation; ``layer_idx + 1`` by default.
        backend: which code computes the rule: ``"auto"``, ``"naive"``, ``"torch"``, ``"native"``, ``"compiled"`` or
            ``"fla"``; see `myfla.backends`.
        device, dtype: of the parameters.

    Raises:
        ValueError: an argument out of range, or arguments that do not fit each other.
        BackendError: a backend that is unknown or not available here.
        TypeError: an unknown keyword.

    Example:
        >>> layer = RWKV7Attention(hidden_size=32, head_dim=8, layer_idx=0, num_hidden_layers=2)
        >>> y, _, _, v_first = layer(torch.randn(2, 10, 32))
        >>> y.shape, v_first.shape
        (torch.Size([2, 10, 32]), torch.Size([2, 10, 32]))
    """

    chooses_backend = True
    x_r: nn.Parameter
    x_w: nn.Parameter
    x_k: nn.Parameter
    x_v: nn.Parameter
    x_a: nn.Parameter
    x_g: nn.Parameter

    def __init__(
        self,
        mode: str = "chunk",
        hidden_size: int = 1024,
        head_dim: Optional[int] = 64,
        num_heads: Optional[int] = None,
        decay_low_rank_dim: Optional[int] = None,
        gate_low_rank_dim: Optional[int] = None,
        a_low_rank_dim: Optional[int] = None,
        v_low_rank_dim: Optional[int] = None,
        elementwise_affine: Optional[bool] = True,
        norm_eps: float = 1e-5,
        layer_idx: Optional[int] = None,
        fuse_norm: bool = False,
        value_dim: Optional[int] = None,
        num_hidden_layers: Optional[int] = None,
        *,
        backend: str = "auto",
        device: Any = None,
        dtype: Optional[torch.dtype] = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        refuse_unknown(NAME, kwargs, KEYWORDS)
        self.backend = check_backend(NAME, backend)
        if mode not in MODES:
            raise value_error(NAME, "mode", f"must be one of {', '.join(MODES)}", mode)
        check_depth(NAME, layer_idx, num_hidden_layers)
        self.head_dim, self.num_heads, self.head_v_dim = head_sizes(NAME, hidden_size, head_dim, num_heads, value_dim)
        self.mode, self.hidden_size, self.layer_idx, self.fuse_norm = mode, hidden_size, layer_idx, fuse_norm
        self.key_dim, self.value_dim = hidden_size, self.num_heads * self.head_v_dim
        self.num_hidden_layers, self.norm_eps = num_hidden_layers, norm_eps

        wide, root = self.head_dim / 64, math.sqrt(hidden_size)
        self.decay_low_rank_dim = low_rank(NAME, "decay_low_rank_dim", decay_low_rank_dim, 2.5 * root * wide)
        self.gate_low_rank_dim = low_rank(NAME, "gate_low_rank_dim", gate_low_rank_dim, 5 * root)
        self.a_low_rank_dim = low_rank(NAME, "a_low_rank_dim", a_low_rank_dim, 2.5 * root * wide)
        self.v_low_rank_dim = low_rank(NAME, "v_low_rank_dim", v_low_rank_dim, 1.7 * root * wide)

        new = {"device": device, "dtype": dtype}
        for name in ("x_r", "x_w", "x_k", "x_v", "x_a", "x_g"):
            setattr(self, name, nn.Parameter(torch.empty(1, 1, hidden_size, **new)))
        self.k_k = nn.Parameter(torch.empty(hidden_size, **new))
        self.k_a = nn.Parameter(torch.empty(hidden_size, **new))
        self.r_k = nn.Parameter(torch.empty(self.num_heads, self.head_dim, **new))
        self.r_proj = nn.Linear(hidden_size, self.key_dim, bias=False, **new)
        self.k_proj = nn.Linear(hidden_size, self.key_dim, bias=False, **new)
        self.v_proj = nn.Linear(hidden_size, self.value_dim, bias=False, **new)
        self.o_proj = nn.Linear(self.value_dim, hidden_size, bias=False, **new)
        self.w_lora = LoRA(hidden_size, self.key_dim, self.decay_low_rank_dim, activation="tanh", **new)
        if layer_idx != 0:
            self.v_lora = LoRA(hidden_size, self.value_dim, self.v_low_rank_dim, activation=None, **new)
        self.a_lora = LoRA(hidden_size, self.key_dim, self.a_low_rank_dim, activation=None, **new)
        self.g_lora = LoRA(hidden_size, self.value_dim, self.gate_low_rank_dim, bias=False, activation="sigmoid", **new)
        self.g_norm = _group_norm(self, fuse_norm, bool(elementwise_affine), new)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set and draw all parameters as the official model does; call it after ``to_empty`` on a meta-device layer."""
        reset_rwkv7(self)

    def extra_repr(self) -> str:
        """Sizes and settings, for ``repr``."""
        parts = ("mode", "hidden_size", "head_dim", "num_heads", "value_dim", "layer_idx", "num_hidden_layers",
                 "norm_eps", "fuse_norm")
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in parts)
        return f"{shown}, backend={summary(self.backend, self.k_k.device)}"

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: Optional[torch.Tensor] = None,
        past_key_values: Optional[Any] = None,
        use_cache: Optional[bool] = False,
        output_attentions: Optional[bool] = False,
        v_first: Optional[torch.Tensor] = None,
        cu_seqlens: Optional[torch.Tensor] = None,
        **kwargs: Any,
    ) -> Tuple[torch.Tensor, None, Optional[Any], torch.Tensor]:
        """Mix a sequence along time.

        Args:
            hidden_states: ``[B, T, hidden_size]``; T may be 0.
            attention_mask: ``[B, T]`` of 0 and 1, or longer (its last T columns count). Padding may be anywhere and may
                contain anything, NaN included; it is removed, so that states and outputs depend on the tokens only.
            past_key_values: a `Cache` to continue from. With ``use_cache`` this layer's states in it are replaced and
                its tokens counted; without, it is read only.
            use_cache: keep the final states.
            output_attentions: accepted and ignored.
            v_first: ``[B, T, value_dim]``, the values of layer 0 for the same tokens. Layer 0 ignores it.
            cu_seqlens: ``[N + 1]`` int offsets of N sequences packed in one row; the mask is then ignored.

        Returns:
            ``(y, None, past_key_values, v_first)`` with y ``[B, T, hidden_size]``, zero at padding, and the ``v_first``
            for the next layer: as given, or in layer 0 its own values ``[B, T, value_dim]``, zero at padding.

        Raises:
            ValueError: an input, mask or offsets of the wrong shape, dtype or device; a missing ``v_first``.
            CacheError: a cache of another layer, batch, layout or device.
            TypeError: an unknown keyword.
        """
        refuse_unknown(f"{NAME}.forward", kwargs, FORWARD, INERT_FORWARD)
        check_hidden_states(NAME, hidden_states, self.hidden_size, self.r_proj.weight)
        self._check_v_first(v_first, hidden_states)
        rows = read_rows(NAME, hidden_states, attention_mask, cu_seqlens)
        x, cu_seqlens = rows.pack(hidden_states), rows.cu_seqlens
        first = None if v_first is None else rows.pack(v_first)
        recurrent_state, conv_state = rows.widen(self._read_cache(past_key_values, rows.sequences, x))
        keep = bool(use_cache) and past_key_values is not None

        inplace = keep and writes_over(past_key_values, recurrent_state)
        call = LayerCall(recurrent_state, conv_state, keep, cu_seqlens, self._uses_chunks(rows.time), inplace)
        o, recurrent_state, conv_state, value = self._mix(x, first, call)
        if keep:
            real = {}
            if isinstance(past_key_values, Cache) and cu_seqlens is not None:
                real["lengths"] = rows.lengths()
            recurrent_state, conv_state = rows.narrow((recurrent_state, conv_state))
            update_layer_cache(
                self, past_key_values, recurrent_state=recurrent_state, conv_state=conv_state, offset=rows.time, **real
            )
        if v_first is None or self.layer_idx == 0:
            v_first = rows.unpack(value)
        return rows.unpack(o), None, past_key_values, v_first

    def gates(self, x: torch.Tensor, cu_seqlens: Optional[torch.Tensor] = None) -> Tuple[torch.Tensor, torch.Tensor]:
        """Decay and removal rate of the state at each token of complete sequences.

        Args:
            x: ``[B, T, hidden_size]``, or ``[1, total, hidden_size]`` with ``cu_seqlens``.
            cu_seqlens: ``[N + 1]``, where each packed sequence starts, and the end.

        Returns:
            log decay ``w`` and removal rate ``a``, ``[B, T, num_heads, head_dim]`` float32 (float64 for float64).
        """
        delta = cast(torch.Tensor, token_shift(x, cu_seqlens))
        wide = accumulation_dtype(x)
        w, a = self.w_lora(x.addcmul(delta, self.x_w)).to(wide), self.a_lora(x.addcmul(delta, self.x_a)).to(wide)
        heads = (*x.shape[:2], self.num_heads, self.head_dim)
        return (torch.sigmoid(w) * STRONGEST_DECAY).view(heads), torch.sigmoid(a).view(heads)

    def _mix(
        self, x: torch.Tensor, v_first: Optional[torch.Tensor], call: LayerCall
    ) -> Tuple[torch.Tensor, Optional[torch.Tensor], torch.Tensor, torch.Tensor]:
        """The layer on tokens without padding: output, final states, and the values before they met ``v_first``."""
        (xr, xw, xk, xv, xa, xg), conv_state = mix_tokens(self, x, call)
        value = project(self.v_proj, xv)
        v_share = self.v_lora(xv) if self.layer_idx != 0 and v_first is not None else None
        projected = Projected(
            project(self.r_proj, xr), self.w_lora(xw), project(self.k_proj, xk), value, self.a_lora(xa),
            self.g_lora(xg), None if v_share is None else v_first, v_share,
        )
        o, state = mix_time(self, projected, call)
        return project(self.o_proj, o), state, conv_state, value

    def _uses_chunks(self, q_len: int) -> bool:
        if tracing():  # both ops have the same form except for one token; a graph must not depend on a threshold
            return not is_one(q_len)
        if torch.is_grad_enabled() or self.training:
            return True
        return q_len >= 64 and self.mode == "chunk"

    def _check_v_first(self, v_first: Any, x: torch.Tensor) -> None:
        if v_first is None:
            if self.layer_idx:
                hint = "pass the fourth result of layer 0"
                raise value_error(NAME, "v_first", f"is required in layer {self.layer_idx}", None, hint)
            return
        want = (*x.shape[:2], self.value_dim)
        if self.layer_idx != 0 and (not isinstance(v_first, torch.Tensor) or tuple(v_first.shape) != want):
            got = tuple(v_first.shape) if isinstance(v_first, torch.Tensor) else type(v_first).__name__
            raise value_error(NAME, "v_first", f"must have shape [B, T, value_dim] = {want}", got)

    def _read_cache(
        self, cache: Any, sequences: int, x: torch.Tensor
    ) -> Tuple[Optional[torch.Tensor], Optional[torch.Tensor]]:
        last = read_layer_state(NAME, self, cache, ("recurrent_state", "conv_state"))
        if last is None:
            return None, None
        recurrent, conv = last.get("recurrent_state"), last.get("conv_state")
        batch = ("batch", sequences)
        if recurrent is not None:
            sizes = (batch, ("heads", self.num_heads), ("key size", self.head_dim), ("value size", self.head_v_dim))
            check_state(NAME, "recurrent_state", recurrent, sizes, x, wide=True)
        if conv is not None:
            check_state(NAME, "conv_state", conv, (batch, ("channels", self.hidden_size)), x)
        return recurrent, conv


def _group_norm(layer: RWKV7Attention, fused: bool, affine: bool, new: dict) -> Union[GroupNorm, nn.GroupNorm]:
    eps = layer.norm_eps
    if isinstance(eps, bool) or not isinstance(eps, (int, float)) or not math.isfinite(eps) or eps < 0:
        raise value_error(NAME, "norm_eps", "must be a finite number from 0", eps)
    if fused:
        return GroupNorm(layer.num_heads, layer.value_dim, elementwise_affine=affine, bias=True,
                         eps=layer.head_dim * eps, **new)
    return nn.GroupNorm(layer.num_heads, layer.value_dim, eps=layer.head_dim * eps, affine=affine, **new)


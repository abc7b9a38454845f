"""The delta rules: raw calls of the compiled kernels, without autograd and without checks.

Letters: N sequences, B rows, T tokens, H query heads, HV value heads (a multiple of H), K and V channels. Any strides;
float32, bfloat16 and float16 in any mixture; states are float32 unless they are given.
"""

import ctypes
from struct import Struct
from typing import Any, Callable, List, NamedTuple, Optional, Sequence, Tuple, cast

import torch

from myfla_native.library import DTYPES, declare, empty, threads

__all__ = ["DPLR", "GATED", "KDA", "Inputs", "Rule", "backward", "forward", "kept_size", "plan_step"]

GATED, KDA, DPLR = 0, 1, 2
"""The rules: one decay for each head, one for each key channel, and diagonal plus low rank (RWKV-7)."""

_CALL = Struct("=12q2d78q")  # mn_rule
_GRADIENTS = Struct("=66q")  # what mn_rule_grad adds
_NONE = (0,) * 6
_Words: Any = ctypes.c_int64 * (_CALL.size // 8)
_THREADS, _PLACES, _O = 11, range(14, 74, 6), 74  # words of an mn_rule: threads, where q to final lie, and o
_KEPT = 128  # MN_KEPT
_SOFTPLUS, _BOUNDED = 1, 2  # MN_SOFTPLUS, MN_BOUNDED
_forward = declare("mn_rule_forward", "p")
_backward = declare("mn_rule_backward", "p")
_step = declare("mn_rule_step", "p")
_empty = empty


class Rule(NamedTuple):
    """The rule and its options.

    Attributes:
        kind: `GATED`, `KDA` or `DPLR`.
        scale: factor on q.
        l2norm: divide q and k by the root of their sums of squares + 1e-6 first.
        A_log, dt_bias: ``[HV]``, for `KDA` dt_bias ``[HV * K]``; not for `DPLR`. With A_log, g is the pre-activation of
            ``-exp(A_log) softplus(g + dt_bias)``.
        beta_scale: 0: beta is the write strength; 1 or 2: the write strength is this times the sigmoid of beta.
        cu_seqlens: ``[N + 1]`` offsets of sequences packed in one row, or None.
        lower_bound: for `KDA`; with it, g is the pre-activation of ``lower_bound sigmoid(exp(A_log) (g + dt_bias))``,
            and A_log may be None: zeros.
    """

    kind: int
    scale: float
    l2norm: bool = False
    A_log: Optional[torch.Tensor] = None
    dt_bias: Optional[torch.Tensor] = None
    beta_scale: int = 0
    cu_seqlens: Optional[torch.Tensor] = None
    lower_bound: Optional[float] = None

    @property
    def gate(self) -> int:
        """The field of an ``mn_rule``."""
        return _BOUNDED if self.lower_bound is not None else _SOFTPLUS if self.A_log is not None else 0


class Inputs(NamedTuple):
    """The tensors of a call."""

    q: torch.Tensor  # [B, T, H, K]
    k: torch.Tensor  # [B, T, H, K]
    v: torch.Tensor  # [B, T, HV, V]
    g: Optional[torch.Tensor]  # [B, T, HV], KDA [B, T, HV, K], DPLR [B, T, H, K]; None: no decay (GATED)
    beta: Optional[torch.Tensor]  # [B, T, HV], None: ones; DPLR: a [B, T, H, K]
    b: Optional[torch.Tensor] = None  # DPLR: [B, T, H, K]


def forward(
    rule: Rule, inputs: Inputs, initial_state: Optional[torch.Tensor] = None, *,
    out_dtype: Optional[torch.dtype] = None, keep: bool = False, final: Optional[torch.Tensor] = None,
    want_final: bool = True,
) -> Tuple[torch.Tensor, Optional[torch.Tensor], Optional[torch.Tensor]]:  # fmt: skip
    """The rule over whole sequences.

    Args:
        rule, inputs: the rule and the tensors. initial_state: ``[N, HV, K, V]`` of any strides, zeros if not given.
        out_dtype: of o; v's if not given.
        keep: whether to return the tensor for `backward`.
        final: ``[N, HV, K, V]``, receives the final states; may be ``initial_state``.
        want_final: return final states also where ``final`` is not given.

    Returns:
        o ``[B, T, HV, V]``; the final states, or None; the tensor for `backward`, `kept_size` numbers in float32, or
        None.
    """
    v = inputs.v
    o = _empty(v.shape, dtype=out_dtype or v.dtype)
    kept = _empty((kept_size(rule, inputs),), dtype=torch.float32) if keep else None
    rule = _packed(rule)
    if final is None and want_final:
        final = _empty(_state_shape(rule, inputs), dtype=torch.float32)
    _forward(_call(rule, inputs, initial_state, final, o, kept))
    return o, final, kept


def kept_size(rule: Rule, inputs: Inputs) -> int:
    """How many float32 numbers a forward keeps: each token's correction ``[B, T, HV, V]``, and states."""
    v, cu = inputs.v, rule.cu_seqlens
    batch, tokens, heads, value = v.shape
    slots = batch * (tokens // _KEPT) if cu is None else tokens // _KEPT + cu.shape[0] - 1
    return heads * value * (batch * tokens + slots * inputs.k.shape[3])


def backward(
    rule: Rule, inputs: Inputs, initial_state: Optional[torch.Tensor], kept: torch.Tensor, do: Optional[torch.Tensor],
    dfinal: Optional[torch.Tensor], into: Optional[Inputs] = None,
) -> Tuple[List[Optional[torch.Tensor]], torch.Tensor, Optional[torch.Tensor], Optional[torch.Tensor]]:
    """Gradients of `forward`.

    Args:
        rule, inputs, initial_state: as for `forward`.
        kept: its third result.
        do, dfinal: gradients of its first two results; None counts as zero.
        into: tensors in the shapes and dtypes of the inputs, of any strides, that receive the gradients.

    Returns:
        the inputs' gradients, each in the shape and dtype of its tensor; that of the initial states ``[N, HV, K, V]``
        in float32; those of A_log and dt_bias in their shapes and in float32, or None.
    """
    rule = _packed(rule)
    grads = [None if x is None else _empty(x.shape, dtype=x.dtype) for x in inputs] if into is None else list(into)
    shape = _state_shape(rule, inputs)
    dinitial = _empty(shape, dtype=torch.float32)
    of_bias = shape[:3] if rule.kind == KDA else shape[:2]
    gates = [
        None if x is None else _empty(size, dtype=torch.float32)
        for x, size in ((rule.A_log, shape[:2]), (rule.dt_bias, of_bias))
    ]
    words: List[int] = [*_tensor(do), *_state(dfinal)]
    for x in grads:
        words += _tensor(x)
    for x in gates:
        words += _NONE if x is None else (x.data_ptr(), x.stride(0), 0, x.stride(1), 1, 0)
    words += _state(dinitial)
    _backward(_call(rule, inputs, initial_state, None, None, kept) + _GRADIENTS.pack(*words))
    dA_log, ddt_bias = (None if x is None else x.sum(0).flatten() for x in gates)
    return grads, dinitial, dA_log, ddt_bias


def plan_step(
    rule: Rule, inputs: Inputs, state: torch.Tensor, out_dtype: Optional[torch.dtype] = None
) -> Callable[..., torch.Tensor]:
    """`forward` for one token of each sequence, called many times: the arguments that do not change are packed once.

    Args:
        rule, inputs: the rule and the tensors, with T = 1.
        state: ``[N, HV, K, V]``.
        out_dtype: of o; v's if not given.

    Returns:
        ``step(q, k, v, g, beta, b, A_log, dt_bias, state, final)`` for tensors with the strides of these, or None where
        these are None; it returns o ``[N, 1, HV, V]``. ``final``, in float32 and laid out like ``state``, receives the
        new state; it may be ``state``.
    """
    shape, dtype = inputs.v.shape, out_dtype or inputs.v.dtype
    template = _call(rule, inputs, state, state, _empty(shape, dtype=dtype), None)
    like_v = inputs.v.is_contiguous() and inputs.v.dtype is dtype

    def step(*given: Optional[torch.Tensor]) -> torch.Tensor:
        v = cast(torch.Tensor, given[2])
        o = torch.empty_like(v) if like_v else v.new_empty(shape, dtype=dtype)
        words = _Words.from_buffer_copy(template)
        words[_THREADS], words[_O] = threads(), o.data_ptr()
        for place, x in zip(_PLACES, given):
            if x is not None:
                words[place] = x.data_ptr()
        _step(words)
        return o

    return step


def _packed(rule: Rule) -> Rule:
    cu = rule.cu_seqlens
    return rule if cu is None else rule._replace(cu_seqlens=cu.to("cpu", torch.int64).contiguous())


def _state_shape(rule: Rule, inputs: Inputs) -> Tuple[int, int, int, int]:
    cu, (batch, _, heads, value) = rule.cu_seqlens, inputs.v.shape
    return batch if cu is None else cu.numel() - 1, heads, inputs.k.shape[3], value


def _call(
    rule: Rule, inputs: Inputs, initial: Optional[torch.Tensor], final: Optional[torch.Tensor],
    o: Optional[torch.Tensor], kept: Optional[torch.Tensor],
) -> bytes:
    """An ``mn_rule``."""
    q, k, v, g, beta, b = inputs
    _, tokens, groups, key = q.shape
    heads, value = v.shape[2:]
    cu, error, states = rule.cu_seqlens, _NONE, _NONE
    if kept is not None:
        row, token, state, first = tokens * heads * value, heads * value, key * value, kept.data_ptr()
        error = (first, row, token, value, 1, 0)
        states = (first + 4 * v.shape[0] * row, heads * state, value, state, 1, 0)
    return _CALL.pack(
        rule.kind, v.shape[0] if cu is None else cu.numel() - 1, tokens, groups, heads, key, value,
        0 if cu is None else cu.data_ptr(), rule.l2norm, rule.gate, rule.beta_scale, threads(), rule.scale,
        rule.lower_bound or 0.0, *_tensor(q), *_tensor(k), *_tensor(v), *_tensor(g), *_tensor(beta), *_tensor(b),
        *_vector(rule.A_log), *_vector(rule.dt_bias, key if rule.kind == KDA else 1), *_state(initial), *_state(final),
        *_tensor(o), *error, *states,
    )  # fmt: skip


def _tensor(x: Optional[torch.Tensor]) -> Sequence[int]:
    """The strides of ``[row, token, head]`` or ``[row, token, head, channel]``."""
    if x is None:
        return _NONE
    stride = x.stride()
    if len(stride) == 4:
        return (x.data_ptr(), *stride, DTYPES[x.dtype])
    return (x.data_ptr(), *stride, 0, DTYPES[x.dtype])


def _state(x: Optional[torch.Tensor]) -> Sequence[int]:
    """The strides of ``[sequence, head, key, value]``."""
    if x is None:
        return _NONE
    sequence, head, key, value = x.stride()
    return x.data_ptr(), sequence, key, head, value, DTYPES[x.dtype]


def _vector(x: Optional[torch.Tensor], own: int = 1) -> Sequence[int]:
    """The strides of ``[heads * own]``."""
    return _NONE if x is None else (x.data_ptr(), 0, 0, own * x.stride(0), x.stride(0), DTYPES[x.dtype])

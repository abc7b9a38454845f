"""The delta rules: raw calls of the compiled kernels, without autograd and without checks.

Letters: N sequences, B rows, T tokens, H query heads, HV value heads (a multiple of H), K and V channels. Any strides;
float32, bfloat16 and float16 in any mixture; states are float32 unless they are given.
"""

import ctypes
from struct import Struct
from typing import Any, List, NamedTuple, Optional, Sequence, Tuple, cast

import torch

from myfla_native.library import DTYPES, declare, empty, threads

__all__ = ["DPLR", "GATED", "KDA", "KEPT", "Inputs", "Plan", "Rule", "backward", "forward", "kept_size"]

GATED, KDA, DPLR = 0, 1, 2
"""The rules: one decay for each head, one for each key channel, and diagonal plus low rank (RWKV-7)."""
KEPT = 128
"""A forward keeps the states after every so many tokens (``MN_KEPT``)."""

_CALL = Struct("=12q2d78q")  # mn_rule
_GRADIENTS = Struct("=66q")  # what mn_rule_grad adds
_NONE = (0,) * 6
_Words: Any = ctypes.c_int64 * ((_CALL.size + _GRADIENTS.size) // 8)
_OFFSETS, _THREADS = 7, 11  # words of an mn_rule
_PLACES = range(14, 74, 6)  # the addresses of q to final
_O, _ERROR, _STATES = 74, 80, 86
_DO, _DX, _DGATES = 92, 104, 140  # of an mn_rule_grad: gradients of the results, of the inputs, of the gates
_SMALL = 1 << 16  # numbers; these need no huge pages
_SOFTPLUS, _BOUNDED = 1, 2  # MN_SOFTPLUS, MN_BOUNDED
_forward = declare("mn_rule_forward", "p")
_backward = declare("mn_rule_backward", "p")
_step = declare("mn_rule_step", "p")
_empty = empty


def gate_of(A_log: Optional[torch.Tensor], lower_bound: Optional[float]) -> int:
    """The field ``gate`` of an ``mn_rule``."""
    return _BOUNDED if lower_bound is not None else _SOFTPLUS if A_log is not None else 0


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
        return gate_of(self.A_log, self.lower_bound)


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
    if final is None and want_final:
        final = _empty(_state_shape(rule, inputs), dtype=torch.float32)
    plan = Plan(rule, inputs, initial_state, final, out_dtype)
    return plan.forward((*inputs, rule.A_log, rule.dt_bias, initial_state), final, rule.cu_seqlens, keep)


def kept_size(rule: Rule, inputs: Inputs) -> int:
    """How many float32 numbers a forward keeps: each token's correction ``[B, T, HV, V]``, and states."""
    v, cu = inputs.v, rule.cu_seqlens
    batch, tokens, heads, value = v.shape
    slots = batch * (tokens // KEPT) if cu is None else tokens // KEPT + cu.shape[0] - 1
    return heads * value * (batch * tokens + slots * inputs.k.shape[3])


def backward(
    rule: Rule, inputs: Inputs, initial_state: Optional[torch.Tensor], kept: torch.Tensor, do: Optional[torch.Tensor],
    dfinal: Optional[torch.Tensor], into: Optional[Inputs] = None,
) -> Tuple[List[Optional[torch.Tensor]], Optional[torch.Tensor], Optional[torch.Tensor], Optional[torch.Tensor]]:
    """Gradients of `forward`.

    Args:
        rule, inputs, initial_state: as for `forward`.
        kept: its third result.
        do, dfinal: gradients of its first two results; None counts as zero.
        into: tensors in the shapes and dtypes of the inputs, of any strides, that receive the gradients.

    Returns:
        the inputs' gradients, each in the shape and dtype of its tensor; that of the initial states ``[N, HV, K, V]``
        in float32, or None if there are none; those of A_log and dt_bias in their shapes and in float32, or None.
    """
    plan = Plan(rule, inputs, initial_state, None)
    given = (*inputs, rule.A_log, rule.dt_bias, initial_state)
    return plan.backward(given, kept, do, dfinal, rule.cu_seqlens, into)


Given = Sequence[Optional[torch.Tensor]]
"""q, k, v, g, beta, b, A_log, dt_bias and the initial states, as in `Inputs`, `Rule` and `forward`."""


class Plan:
    """`forward` and `backward` of calls that differ in the numbers and places of their tensors only. What does not
    change is packed once.

    Args:
        rule, inputs, initial, final: a call's rule and tensors. Those of other calls have the same shapes, dtypes and
            strides, and are None where these are None.
        out_dtype: of o; v's if not given.
    """

    def __init__(
        self, rule: Rule, inputs: Inputs, initial: Optional[torch.Tensor], final: Optional[torch.Tensor],
        out_dtype: Optional[torch.dtype] = None,
    ) -> None:  # fmt: skip
        self.out = inputs.v.shape, out_dtype or inputs.v.dtype
        self.like_v = inputs.v.is_contiguous() and inputs.v.dtype is self.out[1] and inputs.v.numel() < _SMALL
        self.kept = kept_size(rule, inputs)
        self.states_at = 4 * inputs.v.numel()  # in what is kept, bytes after the corrections
        self.states = _state_shape(rule, inputs)
        gates = (rule.A_log, (1,)), (rule.dt_bias, (self.states[2] if rule.kind == KDA else 1,))
        self.results: List[Any] = [None if x is None else (x.shape, x.dtype) for x in inputs]  # of the backward
        self.results += [None if x is None else ((*self.states[:2], *own), torch.float32) for x, own in gates]
        self.results.append(None if initial is None else (self.states, torch.float32))
        self.call = _call(rule, inputs, initial, final, self.out, self.results)

    def step(self, given: Given, final: torch.Tensor) -> torch.Tensor:
        """`forward` for one token of each sequence; ``final`` may be the initial state."""
        v = cast(torch.Tensor, given[2])
        o = torch.empty_like(v) if self.like_v else _empty(self.out[0], dtype=self.out[1])
        words = self._words(given, final, None)
        words[_O] = o.data_ptr()
        _step(words)
        return o

    def forward(
        self, given: Given, final: Optional[torch.Tensor], cu_seqlens: Optional[torch.Tensor] = None,
        keep: bool = False,
    ) -> Tuple[torch.Tensor, Optional[torch.Tensor], Optional[torch.Tensor]]:  # fmt: skip
        """The results of `forward`."""
        o = _empty(self.out[0], dtype=self.out[1])
        kept = _empty((self.kept,), dtype=torch.float32) if keep else None
        offsets = None if cu_seqlens is None else _offsets(cu_seqlens)
        words = self._words(given, final, offsets)
        words[_O] = o.data_ptr()
        if kept is not None:
            self._keep(words, kept)
        _forward(words)
        return o, final, kept

    def backward(
        self, given: Given, kept: torch.Tensor, do: Optional[torch.Tensor], dfinal: Optional[torch.Tensor],
        cu_seqlens: Optional[torch.Tensor] = None, into: Optional[Inputs] = None,
    ) -> Tuple[List[Optional[torch.Tensor]], Optional[torch.Tensor], Optional[torch.Tensor], Optional[torch.Tensor]]:
        """The results of `backward`."""
        offsets = None if cu_seqlens is None else _offsets(cu_seqlens)
        words = self._words(given, None, offsets)
        self._keep(words, kept)
        words[_DO:_DX] = (*_tensor(do), *_state(dfinal))
        new = self.results if into is None else self.results[6:]
        found = [None if x is None else _empty(x[0], dtype=x[1]) for x in new]
        if into is not None:
            found[:0] = into
            words[_DX:_DGATES] = [word for x in into for word in _tensor(x)]
        for place, x in zip(range(_DX, len(words), 6), found):
            if x is not None:
                words[place] = x.data_ptr()
        _backward(words)
        *grads, dA_log, ddt_bias, dinitial = found
        return grads, cast(torch.Tensor, dinitial), _over_sequences(dA_log), _over_sequences(ddt_bias)

    def _words(self, given: Given, final: Optional[torch.Tensor], offsets: Optional[torch.Tensor]) -> Any:
        """The call's ``mn_rule_grad``, complete up to its ``mn_rule`` without o and what is kept."""
        words = _Words.from_buffer_copy(self.call)
        words[_THREADS] = threads()
        if offsets is not None:
            words[_OFFSETS] = offsets.data_ptr()
        for place, x in zip(_PLACES, (*given, final)):
            if x is not None:
                words[place] = x.data_ptr()
        return words

    def _keep(self, words: Any, kept: torch.Tensor) -> None:
        first = kept.data_ptr()
        words[_ERROR], words[_STATES] = first, first + self.states_at


def _over_sequences(x: Optional[torch.Tensor]) -> Optional[torch.Tensor]:
    return None if x is None else x.sum(0).flatten()


def _offsets(cu_seqlens: torch.Tensor) -> torch.Tensor:
    return cu_seqlens.to("cpu", torch.int64).contiguous()


def _state_shape(rule: Rule, inputs: Inputs) -> Tuple[int, int, int, int]:
    cu, (batch, _, heads, value) = rule.cu_seqlens, inputs.v.shape
    return batch if cu is None else cu.numel() - 1, heads, inputs.k.shape[3], value


def _call(
    rule: Rule, inputs: Inputs, initial: Optional[torch.Tensor], final: Optional[torch.Tensor], out: Any, results: Any
) -> bytes:
    """An ``mn_rule_grad`` with everything that does not change between calls: strides, sizes, options."""
    q, k, v, g, beta, b = inputs
    _, tokens, groups, key = q.shape
    (heads, value), cu, (*grads, dA_log, ddt_bias, _) = v.shape[2:], rule.cu_seqlens, results
    state = (0, heads * key * value, value, key * value, 1, 0)
    packed = _CALL.pack(
        rule.kind, v.shape[0] if cu is None else cu.numel() - 1, tokens, groups, heads, key, value, 0, rule.l2norm,
        rule.gate, rule.beta_scale, 0, rule.scale, rule.lower_bound or 0.0, *_tensor(q), *_tensor(k), *_tensor(v),
        *_tensor(g), *_tensor(beta), *_tensor(b), *_vector(rule.A_log),
        *_vector(rule.dt_bias, key if rule.kind == KDA else 1), *_state(initial), *_state(final), *_dense(out),
        *_dense((out[0], torch.float32)), *state,
    )  # fmt: skip
    of_gates = [_NONE if x is None else (0, heads * x[0][2], 0, x[0][2], 1, 0) for x in (dA_log, ddt_bias)]
    words = [*_NONE, *_NONE, *(word for part in (*map(_dense, grads), *of_gates, state) for word in part)]
    return packed + _GRADIENTS.pack(*words)


def _dense(x: Any) -> Sequence[int]:
    """`_tensor` of a tensor without gaps that has this shape and dtype; its address comes later."""
    if x is None:
        return _NONE
    (_, tokens, heads, *channels), dtype = x
    size = channels[0] if channels else 1
    return 0, tokens * heads * size, heads * size, size, 1 if channels else 0, DTYPES[dtype]


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

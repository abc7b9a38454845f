"""A checked call of an op, the input of every back end."""

from typing import Any, NamedTuple, Optional, Sequence, Tuple

import torch

from myfla.utils.dtypes import accumulation_dtype
from myfla.utils.l2norm import l2norm
from myfla.utils.tracing import is_one

__all__ = ["Call", "Result", "call_dtype", "call_tensors", "is_step", "recurrent_only", "without_tensors"]

Result = Tuple[torch.Tensor, torch.Tensor]
"""o ``[B, T, HV, V]`` in the call's ``out_dtype``, and the final states ``[N, HV, K, V]`` in its ``dtype``."""


class Call(NamedTuple):
    """One call of an op.

    Attributes:
        who: the op, for messages.
        family: the rule, a `families.base.Family`.
        form: ``"chunk"`` or ``"recurrent"``.
        x: the family's tensors, ``[B, T, heads, ...]``: queries, keys, values and the rest.
        initial_state: ``[N, HV, K, V]`` or None.
        scale: factor on q.
        cu_seqlens: ``[N + 1]`` or None.
        sequences: N.
        out_dtype: of the outputs.
        l2norm: bring q and k to length one first.
        activation: the function that computes g and beta from those in ``x``; None if they need none.
        chunk_size: tokens in a chunk, or None to choose it by the inputs.
        inplace: whether the initial state may be overwritten.
        lower_bound: value below which the caller promises to have no log decay, or None.
        channel_decays: further log decays of the recurrent form: of key channels ``[B, T, HV, K]``, of value channels.
        state_v_first: whether the final states will be wanted as ``[N, HV, V, K]``; back ends may lay them out so.
    """

    who: str
    family: Any
    form: str
    x: Tuple[Any, ...]
    initial_state: Optional[torch.Tensor]
    scale: float
    cu_seqlens: Optional[torch.Tensor]
    sequences: int
    out_dtype: torch.dtype
    l2norm: bool = False
    activation: Any = None
    chunk_size: Optional[int] = None
    inplace: bool = False
    lower_bound: Optional[float] = None
    channel_decays: Sequence[Optional[torch.Tensor]] = ()
    state_v_first: bool = False

    def activated(self, zero_g: bool = False) -> "Call":
        """The same call with g and beta activated; differentiable. With ``zero_g`` a missing g becomes zero."""
        if zero_g and self.x[3] is None:
            g = torch.zeros_like(self.x[4], dtype=call_dtype(self))
            return _with(self, (*self.x[:3], g, *self.x[4:]), self.activation, self.l2norm).activated()
        if self.activation is None:
            return self
        g, beta = self.activation.gates(*self.x[3:5])
        return _with(self, (*self.x[:3], g, beta, *self.x[5:]), None, self.l2norm)

    def normalised(self) -> "Call":
        """The same call with q and k of length one, if requested; differentiable."""
        if not self.l2norm:
            return self
        wide = accumulation_dtype(*self.x[:2])
        q, k = (l2norm(t, output_dtype=wide) for t in self.x[:2])
        return _with(self, (q, k, *self.x[2:]), self.activation, False)


# Functions, and one for ``_replace``: up to PyTorch 2.6 a compiled graph has neither properties nor that.


def call_dtype(call: Call) -> torch.dtype:
    """The dtype of states and sums."""
    return accumulation_dtype(*call.x, call.initial_state, *call.channel_decays)


def call_tensors(call: Call) -> Tuple[Any, ...]:
    """All tensors that autograd may record; None for missing ones."""
    gate = () if call.activation is None else (call.activation.A_log, call.activation.dt_bias)
    return (*call.x, call.initial_state, *call.channel_decays, *gate)


def recurrent_only(call: Call) -> bool:
    """Whether only the recurrent form supports these inputs: decays of more channels, or a beta for each channel."""
    several = len(call.x) == 5 and call.x[4].dim() == call.x[2].dim()
    return several or any(x is not None for x in call.channel_decays)


def without_tensors(call: Call) -> Call:
    """The options of a call."""
    return call._replace(x=(), activation=None, initial_state=None, cu_seqlens=None, channel_decays=())


def is_step(call: Call) -> bool:
    """Whether there is one token for each sequence."""
    return call.cu_seqlens is None and is_one(call.x[0].shape[1])


def _with(call: Call, x: Tuple[Any, ...], activation: Any, l2norm: bool) -> Call:
    return Call(
        call.who, call.family, call.form, x, call.initial_state, call.scale, call.cu_seqlens, call.sequences,
        call.out_dtype, l2norm, activation, call.chunk_size, call.inplace, call.lower_bound, call.channel_decays,
        call.state_v_first,
    )  # fmt: skip

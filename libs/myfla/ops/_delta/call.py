"""One call of an op, checked: what every back end is given."""

from typing import Any, NamedTuple, Optional, Sequence, Tuple

import torch

from myfla.utils.dtypes import accumulation_dtype
from myfla.utils.l2norm import l2norm

__all__ = ["Call", "Result"]

Result = Tuple[torch.Tensor, torch.Tensor]
"""o ``[B, T, HV, V]`` in the call's ``out_dtype``, and the final states ``[N, HV, K, V]`` in its ``dtype``."""


class Call(NamedTuple):
    """What an op was asked for.

    Attributes:
        who: the op, for messages.
        family: whose rule it is, a `families.base.Family`.
        form: ``"chunk"`` or ``"recurrent"``.
        x: the family's tensors, ``[B, T, heads, ...]``: queries, keys, values and the rest.
        initial_state: ``[N, HV, K, V]`` or None.
        scale: factor on q.
        cu_seqlens: ``[N + 1]`` or None.
        sequences: N.
        out_dtype: of the outputs.
        l2norm: bring q and k to length one first.
        activation: what makes g and beta of those in ``x``; None where they come as they are.
        chunk_size: tokens in a chunk, if the caller has a wish.
        inplace: the initial state may be written.
        lower_bound: what the caller promises of the log decays.
        more: log decays of the recurrent form beside g: of key channels ``[B, T, HV, K]``, of value channels.
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
    more: Sequence[Optional[torch.Tensor]] = ()

    @property
    def dtype(self) -> torch.dtype:
        """What states and sums are kept in."""
        return accumulation_dtype(*self.x, self.initial_state, *self.more)

    @property
    def tensors(self) -> Tuple[Any, ...]:
        """All that autograd may record; None for what there is not."""
        gate = () if self.activation is None else (self.activation.A_log, self.activation.dt_bias)
        return (*self.x, self.initial_state, *self.more, *gate)

    @property
    def by_token_only(self) -> bool:
        """Whether only the recurrent form knows these inputs: decays of more channels, or a beta for each."""
        several = len(self.x) == 5 and self.x[4].dim() == self.x[2].dim()
        return several or any(x is not None for x in self.more)

    @property
    def is_step(self) -> bool:
        """Whether there is one token for each sequence."""
        return self.cu_seqlens is None and self.x[0].shape[1] == 1

    def activated(self, whole: bool = False) -> "Call":
        """The same with g and beta made; differentiable. With ``whole`` a g that was left out is zero."""
        if whole and self.x[3] is None:
            none = torch.zeros_like(self.x[4], dtype=self.dtype)
            return self._replace(x=(*self.x[:3], none, *self.x[4:])).activated()
        if self.activation is None:
            return self
        g, beta = self.activation.gates(*self.x[3:5])
        return self._replace(x=(*self.x[:3], g, beta, *self.x[5:]), activation=None)

    def normalised(self) -> "Call":
        """The same with q and k of length one, if that is asked for; differentiable."""
        if not self.l2norm:
            return self
        wide = accumulation_dtype(*self.x[:2])
        q, k = (l2norm(t, output_dtype=wide) for t in self.x[:2])
        return self._replace(x=(q, k, *self.x[2:]), l2norm=False)

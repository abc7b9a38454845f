"""The DPLR rule by other code than the fast forms: this package's specification, and the official kernels."""

from typing import Any, Optional, Tuple, cast

import torch

from myfla.backends import official
from myfla.ops.common.sequences import each_sequence
from myfla.ops.generalized_delta_rule.dplr.naive import dplr_recurrence
from myfla.utils.autocast import without_autocast
from myfla.utils.dtypes import accumulation_dtype

__all__ = ["naive_tokens", "official_rule"]


@without_autocast
def naive_tokens(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    gk: torch.Tensor,
    scale: float,
    initial_state: Optional[torch.Tensor],
    cu_seqlens: Optional[torch.Tensor],
) -> Tuple[torch.Tensor, torch.Tensor]:
    """`dplr_recurrence` for the layout of the fast forms and packed sequences; always returns the final states."""
    dtype = accumulation_dtype(q, k, v, a, b, gk, initial_state)
    queries = q.to(dtype) * (scale * q.shape[3] ** 0.5)  # the specification scales by K ** -0.5 itself

    def run(*given: Any) -> Tuple[torch.Tensor, torch.Tensor]:
        *tokens, state = given
        q, k, v, a, b, gk = (x.transpose(1, 2) for x in tokens)
        o, final = dplr_recurrence(q, k, v, a, b, gk, initial_state=state)
        return o.transpose(1, 2), cast(torch.Tensor, final)

    o, final = each_sequence(run, (queries, k.to(dtype), v.to(dtype), a, b, gk), initial_state, cu_seqlens)
    return o.to(q.dtype), final


def official_rule(
    which: official.Kernel,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    gk: torch.Tensor,
    scale: float,
    initial_state: Optional[torch.Tensor],
    cu_seqlens: Optional[torch.Tensor],
    **more: Any,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """An official kernel, of checked arguments; always returns the final states."""
    return official.kernel(which)(
        q=q, k=k, v=v, a=a, b=b, gk=gk, scale=scale, initial_state=initial_state, output_final_state=True,
        cu_seqlens=None if cu_seqlens is None else cu_seqlens.long(), **more,
    )  # fmt: skip

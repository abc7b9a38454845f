"""One token of the recurrence in the operations that a compiler for GPUs joins.

`recurrence` lets a matrix product read the state, which a compiler calls as it is; here the products are sums, so that
reading, decaying and writing the state become kernels of their own: two for states ``[N, HV, K, V]``, and one, which
reads and writes every number once, where they are held value-first (``state_v_first``). Same function, up to rounding.
"""

from typing import Optional, Tuple

import torch

from myfla.ops.gated_delta_rule.inputs import Activation
from myfla.utils.autocast import without_autocast
from myfla.utils.dtypes import accumulation_dtype

__all__ = ["fused_step"]


@without_autocast
def fused_step(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    beta: torch.Tensor,
    g: Optional[torch.Tensor],
    gk: Optional[torch.Tensor],
    gv: Optional[torch.Tensor],
    state: Optional[torch.Tensor],
    scale: float,
    activation: Activation,
    inplace: bool = False,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """The rule over checked arguments of one token; arguments and results as `recurrence.recurrence`."""
    dtype, heads = accumulation_dtype(q, k, v, beta, g, gk, gv, state), v.shape[2]
    (q, k), (g, beta) = activation.normalise(q, k), activation.gates(g, beta)
    q, k = (_per_value_head(x[:, 0].to(dtype), heads).unsqueeze(-1) for x in (q, k))
    beta = beta[:, 0].to(dtype)
    beta = beta.unsqueeze(-1) if beta.dim() == 2 else beta
    old = q.new_zeros(*v.shape[:1], heads, k.shape[2], v.shape[3]) if state is None else state.to(dtype)
    for x, shape in ((g, (..., None, None)), (gk, (..., None)), (gv, (..., None, slice(None)))):
        if x is not None:
            old = old * x[:, 0].to(dtype).exp()[shape]
    delta = beta * (v[:, 0].to(dtype) - (k * old).sum(2))
    o = ((q * old).sum(2) + (q * k).sum(2) * delta) * scale
    new = old + k * delta.unsqueeze(2)
    if inplace and state is not None:
        new = state.copy_(new)
    return o.to(v.dtype).unsqueeze(1), new


def _per_value_head(x: torch.Tensor, heads: int) -> torch.Tensor:
    """``[N, H, K]`` as ``[N, HV, K]``."""
    if x.shape[1] == heads:
        return x
    return x.unsqueeze(2).expand(-1, -1, heads // x.shape[1], -1).flatten(1, 2)

"""One token, in operations that a compiler for GPUs fuses.

In the loop a matrix product reads the state, and a compiler does not fuse it with other operations. Here the products
are sums, so that reading, decaying and writing the state become two kernels for states ``[N, HV, K, V]``, and one,
which reads and writes every number once, for states with the value first (``state_v_first``). The function is the same,
up to rounding.
"""

from typing import Optional

import torch

from myfla.ops._delta.call import Call, Result, call_dtype
from myfla.ops._delta.sequences import first_state
from myfla.utils.dtypes import without_autocast

__all__ = ["delta_step", "dplr_step", "gla_step", "kda_step"]


def delta_step(call: Call) -> Result:
    """`recurrent.step.DeltaStep` of a call with one token."""
    call = call.normalised().activated()
    return _delta(call.x[2], call, call.x[3], *(call.channel_decays or (None, None)))


def kda_step(call: Call) -> Result:
    """`recurrent.step.KdaStep` of a call with one token."""
    call = call.normalised().activated()
    return _delta(call.x[2], call, None, call.x[3], None)


def dplr_step(call: Call) -> Result:
    """`recurrent.step.DplrStep` of a call with one token."""
    return _dplr(call.x[2], call)


def gla_step(call: Call) -> Result:
    """`recurrent.step.GlaStep` of a call with one token."""
    return _gla(call.x[2], call)


@without_autocast
def _gla(v: torch.Tensor, call: Call) -> Result:
    dtype, heads, state = call_dtype(call), v.shape[2], call.initial_state
    q, k, v, g = call.x
    q, k = (_per_value_head(x[:, 0].to(dtype), heads).unsqueeze(-1) for x in (q, k))
    decay = g[:, 0].to(dtype).exp()
    new = first_state(call) * (decay[..., None] if decay.dim() == 3 else decay[..., None, None])
    for gv in call.channel_decays:
        new = new if gv is None else new * gv[:, 0].to(dtype).exp().unsqueeze(-2)
    new = new + k * v[:, 0].to(dtype).unsqueeze(2)
    o = call.scale * (q * new).sum(2)
    if call.inplace and state is not None:
        new = state.copy_(new)
    return o.to(call.out_dtype).unsqueeze(1), new


@without_autocast
def _delta(
    v: torch.Tensor, call: Call, g: Optional[torch.Tensor], gk: Optional[torch.Tensor], gv: Optional[torch.Tensor]
) -> Result:
    dtype, heads, state = call_dtype(call), v.shape[2], call.initial_state
    q, k, v, _, beta = call.x
    q, k = (_per_value_head(x[:, 0].to(dtype), heads).unsqueeze(-1) for x in (q, k))
    beta = beta[:, 0].to(dtype)
    beta = beta.unsqueeze(-1) if beta.dim() == 2 else beta
    old = first_state(call)
    for x, shape in ((g, (..., None, None)), (gk, (..., None)), (gv, (..., None, slice(None)))):
        if x is not None:
            old = old * x[:, 0].to(dtype).exp()[shape]
    delta = beta * (v[:, 0].to(dtype) - (k * old).sum(2))
    o = ((q * old).sum(2) + (q * k).sum(2) * delta) * call.scale
    new = old + k * delta.unsqueeze(2)
    if call.inplace and state is not None:
        new = state.copy_(new)
    return o.to(call.out_dtype).unsqueeze(1), new


@without_autocast
def _dplr(v: torch.Tensor, call: Call) -> Result:
    dtype, old = call_dtype(call), first_state(call)
    q, k, v, a, b, gk = (x.to(dtype)[:, 0].unsqueeze(-1) for x in call.x)
    found = (a * old).sum(2, keepdim=True)
    new = gk.exp() * old + b * found + k * v.transpose(-1, -2)
    o = call.scale * (q * new).sum(2)
    return o.unsqueeze(1).to(call.out_dtype), new


def _per_value_head(x: torch.Tensor, heads: int) -> torch.Tensor:
    """``[N, H, K]`` as ``[N, HV, K]``."""
    if x.shape[1] == heads:
        return x
    return x.unsqueeze(2).expand(-1, -1, heads // x.shape[1], -1).flatten(1, 2)

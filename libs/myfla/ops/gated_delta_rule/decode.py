"""One decoding step on a CPU: a token for each row, and a state that stays in the caches.

The operations of `recurrence`, and so its bits, in as few calls as there can be: for one row they, and not what they
compute, are most of the time.
"""

from typing import Tuple

import torch

from myfla.ops.common.tuning import STEP_WHOLE
from myfla.ops.gated_delta_rule.inputs import Activation
from myfla.ops.gated_delta_rule.recurrence import Inputs, one_token
from myfla.utils.autocast import without_autocast
from myfla.utils.l2norm import l2norm_

__all__ = ["decoding_step"]


@without_autocast
def decoding_step(
    state: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    scale: float,
    activation: Activation,
    inplace: bool,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """The rule over what `inputs.is_plain_step` has passed.

    Args:
        state: ``[B, HV, K, V]`` float32, contiguous; not written unless ``inplace``.
        q, k: ``[B, 1, H, K]``.
        v: ``[B, 1, HV, V]``.
        g, beta: ``[B, 1, HV]``.
        scale: factor on q.
        activation: what is done to the inputs first.
        inplace: ``state`` may be written, and is returned.

    Returns:
        o ``[B, 1, HV, V]`` in v's dtype and the final state ``[B, HV, K, V]``.
    """
    if state.numel() > STEP_WHOLE:
        return one_token(state, Inputs(q, k, v, beta, g, None, None), scale, activation, state.dtype, inplace)
    rows, heads, key, value = state.shape
    read = torch.stack((k, q), -2) if q.dtype is k.dtype is state.dtype else torch.stack((k.float(), q.float()), -2)
    if activation.l2norm:
        read = l2norm_(read)
    if heads != k.shape[2]:
        read = read.repeat_interleave(heads // k.shape[2], dim=2)
    k, q = read.unbind(3)
    g, beta = activation.gates(g, beta)
    decay = (g if g.dtype is state.dtype else g.float()).exp()
    new = state if inplace else state.new_empty(state.shape)
    torch.mul(state, decay.view(rows, heads, 1, 1), out=new)
    of_both = torch.bmm(read.view(-1, 2, key), new.view(-1, key, value))
    of_key, of_query = of_both.view(rows, 1, heads, 2, value).unbind(3)
    delta = torch.sub(v, of_key).mul_(beta.unsqueeze(3))
    new.addcmul_(k.view(rows, heads, key, 1), delta.view(rows, heads, 1, value))
    o = of_query.addcmul((k * q).sum(3, keepdim=True), delta).mul_(scale)
    return o if o.dtype is v.dtype else o.to(v.dtype), new

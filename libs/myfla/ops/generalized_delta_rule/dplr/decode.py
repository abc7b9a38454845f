"""One decoding step on a CPU: a token for each row. The operations of `recurrence`, and so its bits, in fewer calls."""

from typing import Sequence, Tuple

import torch

from myfla.ops.common.tuning import STEP_BLOCK, STEP_WHOLE
from myfla.utils.autocast import without_autocast

__all__ = ["decoding_step"]


@without_autocast
def decoding_step(
    state: torch.Tensor, tensors: Sequence[torch.Tensor], scale: float, inplace: bool
) -> Tuple[torch.Tensor, torch.Tensor]:
    """The rule over checked arguments.

    Args:
        state: ``[B, H, K, V]``, contiguous, not empty, aligned sizes; not written unless ``inplace``.
        tensors: q, k, v, a, b, gk, ``[B, 1, H, K]`` and ``[B, 1, H, V]``, none wider than the state.
        scale: factor on q.
        inplace: ``state`` may be written, and is returned.

    Returns:
        o ``[B, 1, H, V]`` in v's dtype and the final state.
    """
    kind = tensors[2].dtype
    tensors = [x if x.dtype is state.dtype else x.to(state.dtype) for x in tensors]
    new = state if inplace else state.new_empty(state.shape)
    if state.numel() <= STEP_WHOLE or state.device.type != "cpu":
        o = _step(scale, state, new, *tensors)
        return o if o.dtype is kind else o.to(kind), new
    rows = max(1, STEP_BLOCK // state[0].numel())
    parts = zip(*(x.split(rows) for x in (state, new, *tensors)))
    return torch.cat([_step(scale, *part) for part in parts]).to(kind), new


def _step(
    scale: float, state: torch.Tensor, new: torch.Tensor, q: torch.Tensor, k: torch.Tensor,
    v: torch.Tensor, a: torch.Tensor, b: torch.Tensor, gk: torch.Tensor,
) -> torch.Tensor:
    """``u = S^T a``, ``o = S^T (q exp(gk)) + (q b) u + (q k) v``, ``S <- diag(exp(gk)) S + b u^T + k v^T``."""
    rows, heads, key, value = state.shape
    q, decay = q if scale == 1 else q * scale, gk.contiguous().exp()  # strided ones may round otherwise
    read = torch.stack((a, q * decay), -2).view(-1, 2, key)
    found, written = torch.bmm(read, state.view(-1, key, value)).view(rows, 1, heads, 2, value).unbind(-2)
    writes, values = torch.stack((b, k), -2), torch.stack((found, v), -2)
    torch.mul(state, decay.view(rows, heads, key, 1), out=new)
    new.view(-1, key, value).baddbmm_(writes.view(-1, 2, key).transpose(1, 2), values.view(-1, 2, value))
    of_b, of_k = (q.unsqueeze(-2) * writes).sum(-1, keepdim=True).unbind(-2)
    return written.addcmul(of_b, found).addcmul_(of_k, v)

"""Products of keys with keys where rounding adds up."""

from typing import Optional

import torch

from myfla.ops._delta.chunk.levels import Levels


def refine_system(
    system: torch.Tensor, left: torch.Tensor, right: torch.Tensor, beta: torch.Tensor, levels: Optional[Levels] = None
) -> None:
    """The products of keys with keys again, summed in float64, in the rows from the first beta above 1 on.

    There a transition may keep lengths instead of shrinking them (eigenvalue -1), and keys that are alike have their
    products rounded alike: over a thousand tokens such an error adds up to 2e-4, where the token loop has 1e-5. No
    token's result depends, by as much as a bit, on a beta after it.

    Args:
        system: ``[M, C, C]``, written; on a CPU in float32 only, elsewhere it stays.
        left, right: ``[M, C, K]`` its factors.
        beta: ``[M, C, 1]``.
        levels: of matrices whose rows from the first strong decay on stay.
    """
    if system.dtype is not torch.float32 or system.device.type != "cpu" or not bool((beta > 1).any()):
        return
    late = (beta > 1).cumsum(1) > 0
    if levels is not None:
        late[levels.strong] &= ~levels.late.unsqueeze(2)
    at = late.flatten(1).any(1).nonzero(as_tuple=True)[0]
    rows, columns = (x.index_select(0, at).double() for x in (left, right))
    fine = torch.bmm(rows, columns.transpose(1, 2)).to(system.dtype)
    system.index_copy_(0, at, torch.where(late.index_select(0, at), fine, system.index_select(0, at)))

"""What every form of the rule asks of its arguments."""

from typing import Dict, Optional

import torch

from myfla.utils.errors import value_error
from myfla.utils.varlen import check_cu_seqlens


def check_inputs(
    who: str,
    q: torch.Tensor,
    v: torch.Tensor,
    others: Dict[str, torch.Tensor],
    initial_state: Optional[torch.Tensor],
    cu_seqlens: Optional[torch.Tensor],
) -> int:
    """Refuse tensors that do not fit together.

    Args:
        who: the caller, for the message.
        q: ``[B, T, H, K]``.
        v: ``[B, T, H, V]``.
        others: by name, the tensors that must have q's shape.
        initial_state: ``[N, H, K, V]`` or None.
        cu_seqlens: ``[N + 1]`` or None.

    Returns:
        N, the number of sequences.

    Raises:
        ValueError: a wrong rank, shape, number format or offset.

    Example:
        >>> x = torch.zeros(2, 5, 1, 4)
        >>> check_inputs("who", x, x, {"k": x}, None, None)
        2
    """
    for name, x in {"q": q, "v": v, **others}.items():
        if not x.is_floating_point():
            raise value_error(who, name, "must be a floating point tensor", x.dtype)
    if q.dim() != 4:
        raise value_error(who, "q", "must have shape [B, T, H, K]", tuple(q.shape))
    if v.dim() != 4 or v.shape[:3] != q.shape[:3]:
        raise value_error(who, "v", f"must have shape [B, T, H, V] with [B, T, H] = {list(q.shape[:3])}", tuple(v.shape))
    for name, x in others.items():
        if x.shape != q.shape:
            raise value_error(who, name, f"must have the shape of the queries, {tuple(q.shape)}", tuple(x.shape))
    batch, tokens, heads, key = q.shape
    rows = batch if cu_seqlens is None else check_cu_seqlens(who, cu_seqlens, batch, tokens)
    if initial_state is not None:
        want = (rows, heads, key, v.shape[-1])
        if tuple(initial_state.shape) != want:
            raise value_error(who, "initial_state", f"must have shape [N, H, K, V] = {want}", tuple(initial_state.shape))
    return rows

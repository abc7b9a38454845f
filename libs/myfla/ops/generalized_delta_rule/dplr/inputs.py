"""The checks of the arguments of every form of the rule."""

from typing import Any, Dict, Optional

import torch

from myfla.utils.errors import value_error
from myfla.utils.varlen import check_cu_seqlens


def check_inputs(
    who: str,
    keys: Dict[str, torch.Tensor],
    v: torch.Tensor,
    initial_state: Optional[torch.Tensor],
    cu_seqlens: Optional[torch.Tensor],
) -> int:
    """Refuse tensors that do not fit together.

    Args:
        who: the caller, for the message.
        keys: by the caller's names, the tensors ``[B, T, H, K]``; the queries come first.
        v: ``[B, T, H, V]``.
        initial_state: ``[N, H, K, V]`` or None.
        cu_seqlens: ``[N + 1]`` or None.

    Returns:
        N, the number of sequences.

    Raises:
        ValueError: a wrong rank, shape, dtype, device or offset.

    Example:
        >>> x = torch.zeros(2, 5, 1, 4)
        >>> check_inputs("who", {"q": x, "k": x}, x, None, None)
        2
    """
    first, q = next(iter(keys.items()))
    given = {**keys, "v": v}
    if initial_state is not None:
        given["initial_state"] = initial_state
    for name, x in given.items():
        if not isinstance(x, torch.Tensor) or not x.is_floating_point():
            raise value_error(who, name, "must be a floating point tensor", getattr(x, "dtype", type(x).__name__))
        if x.device != q.device:
            raise value_error(who, name, f"must be on the device of {first}, {q.device}", str(x.device))
    if q.dim() != 4 or min(q.shape[2:]) < 1:
        raise value_error(who, first, "must have shape [B, T, H, K] with H and K from 1", tuple(q.shape))
    if v.dim() != 4 or v.shape[:3] != q.shape[:3] or v.shape[3] < 1:
        rule = f"must have shape [B, T, H, V] with [B, T, H] = {list(q.shape[:3])} and V from 1"
        raise value_error(who, "v", rule, tuple(v.shape))
    for name, x in keys.items():
        if x.shape != q.shape:
            raise value_error(who, name, f"must have the shape of {first}, {tuple(q.shape)}", tuple(x.shape))
    batch, tokens, heads, key = q.shape
    rows = batch if cu_seqlens is None else check_cu_seqlens(who, cu_seqlens, batch, tokens, q)
    want = (rows, heads, key, v.shape[-1])
    if initial_state is not None and tuple(initial_state.shape) != want:
        rule = f"must have shape [N, H, K, V] = {want}"
        raise value_error(who, "initial_state", rule, tuple(initial_state.shape))
    return rows


def check_options(who: str, cp_context: Any, lower_bound: Optional[float]) -> None:
    """Refuse options of the chunk form that do not fit.

    Raises:
        ValueError: a wrong value.
    """
    if cp_context is not None:
        raise value_error(who, "cp_context", "must be None", type(cp_context).__name__, "split the batch instead")
    if lower_bound is not None and not lower_bound < 0:
        raise value_error(who, "lower_bound", "must be negative, as a log decay is", lower_bound)

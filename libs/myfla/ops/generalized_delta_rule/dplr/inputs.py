"""What every form of the rule asks of its arguments."""

from typing import Any, Dict, Optional

import torch

from myfla.utils.errors import refuse_unknown, value_error
from myfla.utils.varlen import check_cu_seqlens

KEYWORDS = (
    "q", "k", "v", "a", "b", "gk", "scale", "initial_state", "output_final_state", "cu_seqlens", "cu_seqlens_cpu",
    "safe_gate", "chunk_size", "disable_recompute", "cp_context", "lower_bound",
)  # fmt: skip


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
        rule = f"must have shape [B, T, H, V] with [B, T, H] = {list(q.shape[:3])}"
        raise value_error(who, "v", rule, tuple(v.shape))
    for name, x in others.items():
        if x.shape != q.shape:
            raise value_error(who, name, f"must have the shape of the queries, {tuple(q.shape)}", tuple(x.shape))
    batch, tokens, heads, key = q.shape
    rows = batch if cu_seqlens is None else check_cu_seqlens(who, cu_seqlens, batch, tokens)
    if initial_state is not None:
        want = (rows, heads, key, v.shape[-1])
        if tuple(initial_state.shape) != want:
            rule = f"must have shape [N, H, K, V] = {want}"
            raise value_error(who, "initial_state", rule, tuple(initial_state.shape))
    return rows


def check_options(
    who: str, chunk_size: Optional[int], cp_context: Any, lower_bound: Optional[float], legacy: Dict[str, Any]
) -> None:
    """Refuse options of the chunk form that do not fit.

    Raises:
        ValueError: a wrong value.
        TypeError: a keyword in ``legacy`` that is not official.
    """
    refuse_unknown(who, legacy, KEYWORDS, inert=("head_first",))
    if legacy.get("head_first"):
        raise value_error(who, "head_first", "is not supported", True, "pass tensors as [B, T, H, D]")
    if chunk_size is not None and chunk_size not in (16, 32, 64):
        raise value_error(who, "chunk_size", "must be 16, 32 or 64", chunk_size)
    if cp_context is not None:
        raise value_error(who, "cp_context", "must be None", type(cp_context).__name__, "split the batch instead")
    if lower_bound is not None and not lower_bound < 0:
        raise value_error(who, "lower_bound", "must be negative, as a log decay is", lower_bound)

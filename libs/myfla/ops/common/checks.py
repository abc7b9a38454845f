"""The checks of the arguments of operations; errors have the name of the operation that was called."""

import warnings
from typing import Any, Mapping, Optional, Tuple

import torch

from myfla.utils.errors import unknown_keyword, value_error
from myfla.utils.tensors import check_tensor
from myfla.utils.varlen import check_cu_seqlens

__all__ = ["check_chunk_size", "check_like", "check_member", "check_per_token", "check_shapes", "count_sequences",
           "state_k_first", "take_legacy_keywords"]  # fmt: skip


def check_shapes(who: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    """Ranks, heads, lengths and dtypes of q, k and v."""
    shapes = []
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not isinstance(x, torch.Tensor) or not x.is_floating_point():
            raise value_error(who, name, "must be a floating point tensor", getattr(x, "dtype", type(x).__name__))
        shapes.append(x.shape)
        if len(shapes[-1]) != 4 or shapes[-1][3] < 1:
            raise value_error(who, name, "must have shape [B, T, heads, size] with sizes from 1", tuple(x.shape))
    of_q, of_k, of_v = shapes
    if of_q[2] != of_k[2]:
        raise value_error(who, "k", f"must have as many heads as q, H={of_q[2]}", of_k[2])
    if of_k != of_q:
        raise value_error(who, "k", f"must have the shape of q, {tuple(of_q)}", tuple(of_k))
    if of_v[:2] != of_q[:2]:
        raise value_error(who, "v", f"must have the batch and length of q, {tuple(of_q[:2])}", tuple(of_v[:2]))
    heads, value_heads = of_q[2], of_v[2]
    if heads == 0 or value_heads == 0 or value_heads % heads:
        raise value_error(who, "v", f"must have a multiple of q's H={heads} heads", value_heads)
    device = q.device
    for name, x in (("k", k), ("v", v)):
        if x.device != device:
            raise value_error(who, name, f"must be on the device of q, {device}", x.device)


def check_per_token(who: str, name: str, x: torch.Tensor, v: torch.Tensor, *more: int) -> None:
    """A tensor ``[B, T, HV, *more]``."""
    want = tuple(v.shape[:3]) + more
    if not isinstance(x, torch.Tensor) or not x.is_floating_point():
        raise value_error(who, name, "must be a floating point tensor", getattr(x, "dtype", type(x).__name__))
    if tuple(x.shape) != want:
        raise value_error(who, name, f"must have shape {want}", tuple(x.shape))
    check_tensor(who, name, x, v, "v")


def check_member(
    who: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, per_token: Mapping[str, Tuple[Any, Tuple[int, ...]]],
    initial_state: Optional[torch.Tensor], cu_seqlens: Optional[torch.Tensor], state_v_first: bool = False,
    grouped: bool = True,
) -> Optional[torch.Tensor]:  # fmt: skip
    """Refuse tensors that do not fit together.

    Args:
        who: the op's name.
        q, k: ``[B, T, H, K]``.
        v: ``[B, T, HV, V]``.
        per_token: by name, a tensor ``[B, T, HV, *more]`` and its sizes ``more``.
        initial_state: ``[N, HV, K, V]``, V before K if ``state_v_first``, or None.
        cu_seqlens: ``[N + 1]`` or None.
        state_v_first: see above.
        grouped: whether there may be more value heads than query heads.

    Returns:
        The initial state as ``[N, HV, K, V]``, or None.
    """
    check_shapes(who, q, k, v)
    if not grouped and v.shape[2] != q.shape[2]:
        raise value_error(who, "v", f"must have as many heads as q, H={q.shape[2]}", v.shape[2])
    for name, (x, more) in per_token.items():
        check_per_token(who, name, x, v, *more)
    return state_k_first(who, initial_state, k, v, count_sequences(who, q, cu_seqlens), state_v_first)


def check_like(who: str, name: str, x: Any, like: str, of: torch.Tensor) -> None:
    """Refuse an ``x`` that is no floating point tensor with the shape, and on the device, of another."""
    if not isinstance(x, torch.Tensor) or not x.is_floating_point() or x.shape != of.shape or x.device != of.device:
        got = f"{x.dtype} {tuple(x.shape)} on {x.device}" if isinstance(x, torch.Tensor) else type(x).__name__
        rule = f"must be a floating point tensor with the shape of {like}, {tuple(of.shape)}, and on its device"
        raise value_error(who, name, rule, got)


def check_chunk_size(who: str, chunk_size: Optional[int]) -> None:
    """Refuse a chunk size that no chunk form has."""
    if chunk_size is not None and chunk_size not in (16, 32, 64):
        raise value_error(who, "chunk_size", "must be 16, 32 or 64", chunk_size)


def count_sequences(who: str, q: torch.Tensor, cu_seqlens: Optional[torch.Tensor]) -> int:
    """N: rows of the batch, or sequences packed in one row."""
    if cu_seqlens is None:
        return q.shape[0]
    return check_cu_seqlens(who, cu_seqlens, q.shape[0], q.shape[1], q)


def state_k_first(
    who: str, state: Optional[torch.Tensor], k: torch.Tensor, v: torch.Tensor, sequences: int, v_first: bool,
    field: str = "initial_state",
) -> Optional[torch.Tensor]:  # fmt: skip
    """An initial state, checked, as a view ``[N, HV, K, V]``."""
    if state is None:
        return None
    sizes = (v.shape[3], k.shape[3]) if v_first else (k.shape[3], v.shape[3])
    shape = (sequences, v.shape[2], *sizes)
    if not isinstance(state, torch.Tensor) or tuple(state.shape) != shape:
        layout = "[N, HV, V, K]" if v_first else "[N, HV, K, V]"
        got = tuple(state.shape) if isinstance(state, torch.Tensor) else type(state).__name__
        raise value_error(who, field, f"must have shape {layout} = {shape}", got)
    if not state.is_floating_point():
        raise value_error(who, field, "must be a floating point tensor", state.dtype)
    check_tensor(who, field, state, v, "v")
    return state.transpose(2, 3) if v_first else state


def take_legacy_keywords(who: str, legacy: dict, state_v_first: bool, known: tuple) -> bool:
    """Accept the official keywords of older versions; returns ``state_v_first``."""
    for name in legacy:
        if name not in ("transpose_state_layout", "head_first"):
            raise unknown_keyword(who, name, known)
    if legacy.get("head_first"):
        raise value_error(who, "head_first", "is not supported", True, "pass tensors as [B, T, H, D]")
    if "transpose_state_layout" in legacy:
        if state_v_first:
            raise value_error(who, "transpose_state_layout", "is the old name of state_v_first", "both", "pass one")
        warnings.warn(f"{who}: transpose_state_layout is now state_v_first", DeprecationWarning, stacklevel=3)
        return bool(legacy["transpose_state_layout"])
    return state_v_first

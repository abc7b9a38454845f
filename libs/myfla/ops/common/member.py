"""Checks of ops that are another rule with other arguments: so that messages name the op that was called."""

from typing import Any, Mapping, Optional, Tuple

import torch

from myfla.ops.gated_delta_rule.inputs import check_per_token, check_shapes, count_sequences, state_k_first
from myfla.utils.errors import value_error

__all__ = ["check_like", "check_member", "state_back"]

Final = Tuple[torch.Tensor, Optional[torch.Tensor]]


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


def state_back(result: Final, state_v_first: bool) -> Final:
    """Outputs and final state, in the layout that was asked for."""
    o, final = result
    return o, final.transpose(2, 3).contiguous() if state_v_first and final is not None else final

"""`selective_state_update`: one token of Mamba and Mamba-2, overwritten the caller's state."""

from typing import Any, Optional

import torch
import torch.nn.functional as F

from myfla.utils.autograd import records
from myfla.utils.dtypes import accumulation_dtype, without_autocast
from myfla.utils.errors import value_error
from myfla.utils.tensors import check_integers, check_tensor
from myfla.utils.tracing import tracing

__all__ = ["selective_state_update"]

NAME = "selective_state_update"


def selective_state_update(
    state: torch.Tensor,
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: Optional[torch.Tensor] = None,
    z: Optional[torch.Tensor] = None,
    dt_bias: Optional[torch.Tensor] = None,
    dt_softplus: bool = False,
    state_batch_indices: Optional[torch.Tensor] = None,
) -> torch.Tensor:
    """One step of a selective state space, with the name and arguments of ``mamba_ssm``; ``state`` is overwritten.

    ``S <- exp(dt A) S + dt x B^T;  y = (S C + D x) silu(z)`` with ``dt <- softplus(dt + dt_bias)``. Time steps may
    differ from channel to channel and A from number to number (Mamba, arXiv 2312.00752); Mamba-2 has one of each per
    head, expanded, which is detected and costs nothing.

    Args:
        state: ``[N, HV, V, K]``; without heads, here and below, ``[N, V, K]``.
        x, dt: ``[N, HV, V]``.
        A: ``[HV, V, K]``.
        B, C: ``[N, H, K]``; HV is a multiple of H, head i uses group ``i // (HV / H)``.
        D, dt_bias: ``[HV, V]``, or none.
        z: ``[N, HV, V]`` gate of the outputs, or none.
        dt_softplus: see above.
        state_batch_indices: ``[N]`` integers: the row of ``state`` for each token; ``state`` may have more rows. The
            rows must be different.

    Returns:
        y ``[N, HV, V]`` in the dtype of x.

    Raises:
        ValueError: a shape or dtype that does not fit; the message says which.

    Example:
        >>> state, one = torch.zeros(1, 2, 3), torch.ones(1, 2)
        >>> selective_state_update(state, one, one, -torch.ones(2, 3), torch.ones(1, 3), torch.ones(1, 3)).tolist()
        [[3.0, 3.0]]
        >>> state[0, 0].tolist()
        [1.0, 1.0, 1.0]
    """
    check_tensor(NAME, "state", state)
    if state.dim() == 3:
        one_head = {"state": state, "x": x, "dt": dt, "B": B, "C": C, "z": z}
        batched = {name: _unsqueeze(name, given, 1) for name, given in one_head.items()}
        per_head = {name: _unsqueeze(name, given, 0) for name, given in (("A", A), ("D", D), ("dt_bias", dt_bias))}
        y = selective_state_update(
            **batched, **per_head, dt_softplus=dt_softplus, state_batch_indices=state_batch_indices
        )
        return y.squeeze(1)
    _check(state, x, dt, A, B, C, D, z, dt_bias, state_batch_indices)
    return _step(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus, state_batch_indices)


@without_autocast
def _step(
    state: torch.Tensor, x: torch.Tensor, dt: torch.Tensor, A: torch.Tensor, B: torch.Tensor, C: torch.Tensor,
    D: Optional[torch.Tensor], z: Optional[torch.Tensor], dt_bias: Optional[torch.Tensor], dt_softplus: bool,
    rows: Optional[torch.Tensor],
) -> torch.Tensor:  # fmt: skip
    dtype = accumulation_dtype(state, x, dt, A, B, C, D, z, dt_bias)
    recorded = records(state, x, dt, A, B, C, D, z, dt_bias) or tracing(state)
    (heads, value), key = x.shape[1:], B.shape[2]
    wide = x.to(dtype)
    step = _tied(dt).to(dtype)
    step = step if dt_bias is None else step + _tied(dt_bias).to(dtype)
    step = F.softplus(step) if dt_softplus else step
    decay = (step.unsqueeze(-1) * _tied(_tied(A, -2)).to(dtype)).exp()
    write, read = (t.to(dtype).repeat_interleave(heads // t.shape[1], 1) for t in (B, C))
    old = state if rows is None else state.index_select(0, rows)
    if recorded:
        old = old.clone()  # the backward reads it after state has been written
    if recorded or old.dtype != dtype:
        new = torch.addcmul(old.to(dtype) * decay, (wide * step).unsqueeze(-1), write.unsqueeze(-2))
    else:
        new = old.mul_(decay).addcmul_((wide * step).unsqueeze(-1), write.unsqueeze(-2))
    y = torch.bmm(new.reshape(-1, value, key), read.reshape(-1, key, 1)).view(x.shape)
    if rows is not None:
        state.index_copy_(0, rows, new.to(state.dtype))
    elif new is not state:
        state.copy_(new)
    y = y if D is None else torch.addcmul(y, wide, D.to(dtype))
    y = y if z is None else y * F.silu(z.to(dtype))
    return y.to(x.dtype)


def _tied(x: torch.Tensor, axis: int = -1) -> torch.Tensor:
    """One number along an axis that was expanded from one."""
    return x.narrow(axis, 0, 1) if x.shape[axis] > 1 and x.stride(axis) == 0 else x


def _unsqueeze(name: str, x: Any, axis: int) -> Any:
    if x is not None:
        check_tensor(NAME, name, x)
    return x if x is None or x.dim() == 0 else x.unsqueeze(axis)


def _check(
    state: Any, x: Any, dt: Any, A: Any, B: Any, C: Any, D: Any, z: Any, dt_bias: Any, rows: Any
) -> None:  # fmt: skip
    given = {"state": state, "x": x, "dt": dt, "A": A, "B": B, "C": C, "D": D, "z": z, "dt_bias": dt_bias}
    for name, tensor in given.items():
        if tensor is None and name in ("D", "z", "dt_bias"):
            continue
        check_tensor(NAME, name, tensor, state, "state")
        if not tensor.is_floating_point():
            raise value_error(NAME, name, "must be a floating point tensor", tensor.dtype)
    if state.dim() != 4 or min(state.shape[1:]) < 1:
        raise value_error(NAME, "state", "must have shape [N, HV, V, K] or [N, V, K] with sizes from 1",
                          tuple(state.shape))
    heads, value, key = state.shape[1:]
    if x.dim() != 3 or x.shape[1:] != (heads, value) or (rows is None and len(x) != len(state)):
        count = f"{len(state)}" if rows is None else "N"
        raise value_error(NAME, "x", f"must have shape [{count}, {heads}, {value}] for this state", tuple(x.shape))
    groups = B.shape[1] if B.dim() == 3 else 0
    if B.dim() != 3 or groups == 0 or heads % groups or B.shape != (len(x), groups, key):
        rule = f"must have shape [{len(x)}, H, {key}] where H divides {heads}"
        raise value_error(NAME, "B", rule, tuple(B.shape))
    shapes = {
        "dt": x.shape, "z": x.shape, "C": B.shape, "A": state.shape[1:], "D": x.shape[1:], "dt_bias": x.shape[1:],
    }  # fmt: skip
    for name, shape in shapes.items():
        if given[name] is not None and given[name].shape != shape:
            raise value_error(NAME, name, f"must have shape {tuple(shape)}", tuple(given[name].shape))
    if rows is not None:
        _check_rows(rows, len(x), state)


def _check_rows(rows: Any, count: int, state: torch.Tensor) -> None:
    field = "state_batch_indices"
    check_integers(NAME, field, rows, 1)
    check_tensor(NAME, field, rows, state, "state")
    if len(rows) != count:
        raise value_error(NAME, field, f"must have one row for each of {count} tokens", len(rows))
    if rows.is_meta or tracing(rows):
        return
    found = rows.tolist()
    if len(set(found)) != count or any(not 0 <= row < len(state) for row in found):
        raise value_error(NAME, field, f"must be different rows from 0 to {len(state) - 1}", found)

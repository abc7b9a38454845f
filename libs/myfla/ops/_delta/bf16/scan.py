"""The scan over chunks: the state stays in float32, and each chunk reads a rounded copy.

A step has three kernels: one pass that rounds the state and decays it, and two products. Where sequences and heads are
too few to fill a GPU, long sequences are cut into rows that are scanned at the same time, both from a zero state and
from the identity matrix. That gives each chunk's state as a function of its row's first state. Once the states between
the rows are known, one product gives the states of all chunks. The backward scans twice: first from zero, and then with
the known gradients between the rows.
"""

from typing import Callable, Optional, Tuple

import torch

from myfla.ops._delta.bf16.layout import Layout
from myfla.ops._delta.bf16.products import accumulate
from myfla.ops._delta.bf16.static import mark_static

Advance = Callable[..., None]


def advance(h: torch.Tensor, g_last: torch.Tensor, rounded: torch.Tensor) -> None:
    """``rounded <- h; h <- g_last h``: the pass over a state between two products."""
    mark_static(h, g_last, rounded)
    rounded.copy_(h)
    h.mul_(g_last)


def scan_rows(
    advance: Advance, layout: Layout, g_last: torch.Tensor, wq: torch.Tensor, k_out: torch.Tensor, stack: torch.Tensor,
    initial_state: Optional[torch.Tensor], dtype: torch.dtype,
) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
    """The states before all chunks, and ``v_new``.

    Args:
        advance: the function above, compiled or not.
        layout: the order of the chunks.
        g_last: ``[M, 1 or K, 1]``.
        wq: ``[M, 2C, K]``, -w over q_in.
        k_out: ``[M, R, K]``.
        stack: ``[M, K + R, V]``; from row K on u and the second pair's values. Written: the rounded state before each
            chunk, and v_new in the place of u.
        initial_state: ``[N, HV, K, V]`` or None.
        dtype: of states.

    Returns:
        the final states ``[N, HV, K, V]``, and where sequences are cut the transition of each row, ``[rows, HV, K,
        K]``.
    """
    key, value, heads = wq.shape[2], stack.shape[2], layout.heads
    h = stack.new_zeros(layout.sequences, heads, key, value, dtype=dtype)
    if initial_state is not None:
        h.copy_(initial_state)
    if not layout.parts:
        rows = h if layout.sequence is None else h[layout.sequence]
        _scan(advance, layout, g_last, wq, k_out, stack, rows.flatten(0, 1))
        if layout.sequence is not None:
            h[layout.sequence] = rows
        return h, None
    wide = stack.new_empty(stack.shape[0], stack.shape[1], value + key)
    wide[:, key:, :value].copy_(stack[:, key:])
    wide[:, key:, value:].zero_()
    effects = h.new_zeros(layout.rows, heads, key, value + key)
    effects[..., value:].diagonal(0, 2, 3).fill_(1)
    _scan(advance, layout, g_last, wq, k_out, wide, effects.flatten(0, 1))
    transitions = effects[..., value:].contiguous()
    starts = _join_parts(layout, effects[..., :value], transitions, h)
    # The row's result from a zero state, and the part that depends on its first state.
    starts = starts.to(stack.dtype).flatten(0, 1)
    starts = torch.cat([starts[: rows * heads] for rows in layout.steps])
    stack.copy_(wide[:, :, :value])
    accumulate(stack, wide[:, :, value:], starts)
    return h, transitions


def scan_bwd(
    advance: Advance, layout: Layout, g_last: torch.Tensor, wq: torch.Tensor, k_out: torch.Tensor, dvo: torch.Tensor,
    transitions: Optional[torch.Tensor], dfinal: Optional[torch.Tensor], dh: torch.Tensor, dtype: torch.dtype,
) -> torch.Tensor:
    """The gradients of the states after all chunks, and of ``v_new``.

    Args:
        advance, layout, g_last, wq: as for `scan_rows`.
        k_out: ``[M, C, K]``.
        dvo: ``[M, 2C, V]``, the gradient that reaches v_new within its chunk, completed in place, over do.
        transitions: of `scan_rows`.
        dfinal: ``[N, HV, K, V]``, gradient of the final states, or None.
        dh: ``[M, K, V]``, written: the rounded gradients.
        dtype: of states.

    Returns:
        the gradient of the initial states ``[N, HV, K, V]``.
    """
    d = dh.new_zeros(layout.sequences, layout.heads, *dh.shape[1:], dtype=dtype)
    if dfinal is not None:
        d.copy_(dfinal)
    if transitions is not None:
        from_zero = d.new_zeros(layout.rows, *d.shape[1:])
        _scan_bwd(advance, layout, g_last, wq, k_out, dvo.clone(), from_zero.flatten(0, 1), torch.empty_like(dh))
        rows = _join_parts(layout, from_zero, transitions, d, back=True)
    elif layout.sequence is None:
        rows = d
    else:
        rows = d[layout.sequence]
    _scan_bwd(advance, layout, g_last, wq, k_out, dvo, rows.flatten(0, 1), dh)
    if transitions is None and layout.sequence is not None:
        d[layout.sequence] = rows
    return d


def _scan(
    advance: Advance, layout: Layout, g_last: torch.Tensor, wq: torch.Tensor, k_out: torch.Tensor, stack: torch.Tensor,
    h: torch.Tensor,
) -> None:
    """``v_new = u - w h;  h <- g_last h + k_out^T v_new`` step after step; ``h [rows * HV, K, V]`` in place."""
    chunk, key = wq.shape[1] // 2, wq.shape[2]
    parts = (g_last, wq[:, :chunk], k_out.transpose(1, 2), stack[:, :key], stack[:, key : key + chunk], stack[:, key:])
    for g, w, k, rounded, v_new, values in zip(*(layout.by_step(x) for x in parts)):
        now = h[: len(g)]
        advance(now, g, rounded)
        accumulate(v_new, w, rounded)
        accumulate(now, k, values)


def _scan_bwd(
    advance: Advance, layout: Layout, g_last: torch.Tensor, wq: torch.Tensor, k_out: torch.Tensor, dvo: torch.Tensor,
    d: torch.Tensor, dh: torch.Tensor,
) -> None:
    """``dv_new += k_out d;  d <- g_last d + wq^T [dv_new; do]`` from the last step to the first."""
    chunk = k_out.shape[1]
    parts = (g_last, k_out, wq.transpose(1, 2), dh, dvo[:, :chunk], dvo)
    for g, k, w, rounded, dv_new, both in reversed(list(zip(*(layout.by_step(x) for x in parts)))):
        now = d[: len(g)]
        advance(now, g, rounded)
        accumulate(dv_new, k, rounded)
        accumulate(now, w, both)


def _join_parts(
    layout: Layout, from_zero: torch.Tensor, transitions: torch.Tensor, h: torch.Tensor, back: bool = False
) -> torch.Tensor:
    """The states where all rows start (backward: the gradients where they end).

    Args:
        from_zero: ``[rows, HV, K, V]``, the result of each row from a zero state.
        transitions: ``[rows, HV, K, K]``, the factor of each row's first state in its result.
        h: ``[N, HV, K, V]`` at the sequences' starts (backward: at their ends); advanced to their other ends, in place.
    """
    starts = torch.empty(from_zero.shape, dtype=from_zero.dtype, device=from_zero.device)
    transitions = transitions.transpose(2, 3) if back else transitions
    for sequences, rows in reversed(layout.parts) if back else layout.parts:
        now = h[sequences]
        starts[rows] = now
        h[sequences] = from_zero[rows] + transitions[rows] @ now
    return starts


"""The recurrence over chunks that all families use.

For one chunk of one head, with rows for tokens and the incoming state ``h [K, V]``::

    v_new = A_inv (v_in - k_in h)            A_inv = (I + L)^-1;   without a delta rule: v_new = v_in
    o     = q_in h + A_qk v_new (+ o_v)
    h'    = g_last h + k_out^T v_new (+ kv)

(the WY / UT form of DeltaNet, arXiv 2406.06484; ``u = A_inv v_in`` and ``w = A_inv k_in`` are its usual names). Back::

    dv_new = A_qk^T do + k_out dh'           dv_in = A_inv^T dv_new
    dh     = g_last dh' + q_in^T do - k_in^T dv_in
    dq_in  = do h^T,   dk_in = -dv_in h^T,   dk_out = v_new dh'^T,   dg_last = sum of h * dh'
    dA_qk  = do v_new^T,   dL = -dv_in v_new^T                           each cut to its triangle

There are two forms of the scan over chunks, which compute the same result:

**Steps**: a chunk's tokens read the incoming state and update it. This needs the fewest multiplications, and is best on
CPUs, where the time of a product is that of its multiplications.

**Transitions** put a chunk's whole effect on the state into one matrix, ``h' = P h + R``, all chunks at once, so that
the loop has one product for each chunk: ``P = g_last - k_out^T A_inv k_in``, ``R = k_out^T A_inv v_in (+ kv)``. This
needs more multiplications and a quarter of the kernel launches, and is best on GPUs where a step has few matrices.

With bfloat16 on a GPU's matrix units the same recurrence is `bf16.form`: there states are float32, but rounded where a
product reads them, and all outputs are one product after the scan.
"""

from itertools import repeat
from typing import Any, Iterator, List, NamedTuple, Optional, Tuple

import torch

from myfla.ops._delta.layout import Block


class Chunks(NamedTuple):
    """A family's tokens, prepared; M chunks of C tokens."""

    g_last: torch.Tensor  # [M, 1 or K, 1]  decay over the whole chunk
    qk_in: torch.Tensor  # [M, 2C, K]  q_in over k_in, decayed from the chunk's start; [M, C, K]: queries only
    k_out: torch.Tensor  # [M, C, K]  keys decayed to the chunk's end
    A_qk: torch.Tensor  # [M, C, C]  what each query reads of its own chunk: a lower triangle
    v_in: torch.Tensor  # [M, C, V]  may be overwritten
    system: Optional[torch.Tensor] = None  # [M, C, C]  L, read below the diagonal only; None: no delta rule
    kv: Optional[torch.Tensor] = None  # [M, K, V]  written independently of the state
    o_v: Optional[torch.Tensor] = None  # [M, C, V]  read independently of the state
    extra: Any = None  # what the family's `prepare_bwd` needs

    @property
    def q_in(self) -> torch.Tensor:
        """``[M, C, K]``, the upper half of ``qk_in``."""
        return self.qk_in[..., : self.k_out.shape[-2], :]

    @property
    def k_in(self) -> torch.Tensor:
        """``[M, C, K]``, the lower half of ``qk_in``; empty without a delta rule."""
        return self.qk_in[..., self.k_out.shape[-2] :, :]


class ChunkGrads(NamedTuple):
    """Gradients of `Chunks`, from which the family computes those of its tokens. They are buffers and may be
    overwritten."""

    out: torch.Tensor  # [M, 2C, V]  do over -dv_in; [M, C, V] without a delta rule. ``out v_new^T``: of A_qk over L
    v_in: torch.Tensor  # [M, C, V]
    qk_in: torch.Tensor  # [M, 2C or C, K]
    k_out: torch.Tensor  # [M, C, K]
    g_last: torch.Tensor  # [M, 1 or K, 1]
    kv: Optional[torch.Tensor]  # [M, K, V]  of the state after each chunk; None where the family has no kv
    v_new: torch.Tensor  # [M, C, V]  given, not to be written


def by_transitions(device: torch.device, matrices: int) -> bool:
    """Whether to use transitions, rather than steps.

    Args:
        device: where it runs.
        matrices: sequences times heads, the matrices of one step of the loop; a hundred fill a large GPU.
    """
    return device.type != "cpu" and matrices < 128


def split_steps(block: Block, heads: int, *tensors: Optional[torch.Tensor]) -> Iterator[Tuple[Any, ...]]:
    """The part of each tensor ``[M, ...]`` that belongs to each step of a block; None for None."""
    sizes = [count * heads for count in block.counts]
    return zip(*[repeat(None) if x is None else x.split(sizes) for x in tensors])


def scan(
    block: Block, heads: int, c: Chunks, A_inv: Optional[torch.Tensor], running: torch.Tensor, v_new: torch.Tensor,
    o: torch.Tensor, states: Optional[torch.Tensor] = None, zero_state: bool = False,
) -> None:
    """Compute states and outputs from the first chunk to the last.

    Args:
        block: which chunks.
        heads: HV.
        c: the block's chunks; ``v_in`` is overwritten.
        A_inv: ``[M, C, C]``, None without a delta rule: then ``v_new`` is given.
        running: ``[N * HV, K, V]`` states of all sequences, before and after.
        v_new: ``[M, C, V]``, written.
        o: ``[M, C, V]``, written: ``q_in h (+ o_v)``.
        states: ``[M, K, V]`` states before each chunk, written; None if they are not needed.
        zero_state: whether the states before are zero.
    """
    if by_transitions(running.device, running.shape[0]):
        return _scan_by_transitions(block, heads, c, A_inv, running, v_new, o, states)
    k_in = None if A_inv is None else c.k_in
    steps = split_steps(
        block, heads, c.g_last, c.q_in, k_in, A_inv, c.k_out.transpose(1, 2), c.v_in, c.kv, c.o_v, v_new, o
    )
    for step, (state, after, following) in zip(steps, state_buffers(block, heads, running, states)):
        g, q, k, inverse, k_out, value, kv, o_v, new, out = step
        if inverse is not None:
            torch.bmm(inverse, value if zero_state else value.baddbmm_(k, state, alpha=-1), out=new)
        if zero_state:
            out.zero_() if o_v is None else out.copy_(o_v)
        elif o_v is None:
            torch.bmm(q, state, out=out)
        else:
            torch.baddbmm(o_v, q, state, out=out)
        if kv is None and zero_state:
            torch.bmm(k_out, new, out=after)
        else:
            torch.mul(state, g, out=after) if kv is None else torch.addcmul(kv, state, g, out=after)
            after.baddbmm_(k_out, new)
        if following is not None:
            following.copy_(after[: following.shape[0]])
        zero_state = False


def recompute_states(block: Block, heads: int, c: Chunks, v_new: torch.Tensor, states: torch.Tensor) -> None:
    """Recompute the states before each chunk from those before the first.

    Args:
        block, heads, c, v_new: as `scan`.
        states: ``[M, K, V]``; those of the first step are given, the others written.
    """
    steps = list(split_steps(block, heads, c.g_last, c.k_out.transpose(1, 2), c.kv, v_new, states))
    for (g, k_out, kv, new, state), (*_, after) in zip(steps, steps[1:]):
        rows = after.shape[0]
        if kv is None:
            torch.mul(state[:rows], g[:rows], out=after)
        else:
            torch.addcmul(kv[:rows], state[:rows], g[:rows], out=after)
        after.baddbmm_(k_out[:rows], new[:rows])


class ScanGrads(NamedTuple):
    """The tensors of `scan_bwd`."""

    out: torch.Tensor  # [M, 2C or C, V]  given: do in the upper half; written: -dv_in in the lower
    v_new: torch.Tensor  # [M, C, V] given: A_qk^T do; overwritten by the whole gradient of v_new
    v_in: torch.Tensor  # [M, C, V]  written; v_new itself without a delta rule
    qk_in: torch.Tensor  # [M, 2C or C, K]  written
    k_out: torch.Tensor  # [M, C, K]  written
    g_last: torch.Tensor  # [M, 1 or K, 1]  written
    after: Optional[torch.Tensor]  # [M, K, V]  of the states after each chunk, written; None if not needed


def scan_bwd(
    block: Block, heads: int, c: Chunks, A_inv_T: Optional[torch.Tensor], states: torch.Tensor, v_new: torch.Tensor,
    running: torch.Tensor, d: ScanGrads, zero_state: bool = False, zero_dh: bool = False,
) -> None:
    """Compute the gradients from the last chunk to the first.

    Args:
        block, heads, c: as `scan`.
        A_inv_T: ``[M, C, C]``, the inverse transposed; None without a delta rule.
        states: ``[M, K, V]`` before each chunk.
        v_new: ``[M, C, V]``.
        running: ``[N * HV, K, V]`` gradients of the states of all sequences, after and before.
        d: receives the gradients.
        zero_state: whether the states before were zero; their gradients are then undefined.
        zero_dh: whether the gradients of the states after are zero.
    """
    if by_transitions(running.device, running.shape[0]):
        return _scan_bwd_by_transitions(block, heads, c, A_inv_T, states, v_new, running, d)
    running = running[block.rows[0] * heads :]
    dh, dh_T, by_channel = running, running.transpose(1, 2), c.g_last.shape[1] > 1
    below = None if A_inv_T is None else d.out[:, block.chunk :]
    parts = split_steps(
        block, heads, c.g_last, c.qk_in.transpose(1, 2), c.k_out, A_inv_T, states, v_new,
        d.out, below, d.v_new, d.v_in, d.qk_in, d.k_out, d.g_last, d.after,
    )  # fmt: skip
    for step, part in reversed(list(enumerate(parts))):
        g, qk, k_out, inverse, state, new, out, minus, dnew, dv, dqk, dk_out, dg, after = part
        if dh.shape[0] != g.shape[0]:
            dh = running[: g.shape[0]]
            dh_T = dh.transpose(1, 2)
        first = zero_state and step == 0
        if not zero_dh:
            dnew.baddbmm_(k_out, dh)
        if inverse is not None:
            torch.neg(torch.bmm(inverse, dnew, out=dv), out=minus)
        if first:
            dqk.zero_()
        else:
            torch.bmm(out, state.transpose(1, 2), out=dqk)
        if zero_dh:
            dk_out.zero_()
        else:
            torch.bmm(new, dh_T, out=dk_out)
        if first or zero_dh:
            dg.zero_()
        else:
            torch.sum(state * dh, 2 if by_channel else (1, 2), keepdim=True, out=dg)
        if after is not None:
            after.copy_(dh)
        if zero_dh:
            torch.bmm(qk, out, out=dh)
        elif not first:
            dh.mul_(g).baddbmm_(qk, out)
        zero_dh = False


def state_buffers(
    block: Block, heads: int, running: torch.Tensor, states: Optional[torch.Tensor]
) -> List[Tuple[torch.Tensor, torch.Tensor, Optional[torch.Tensor]]]:
    """For each step: the states before it, where it writes those after it, and, where sequences end, where the others
    are copied.

    Args:
        block, heads: as `scan`.
        running: ``[N * HV, K, V]``, the states before the first step, and after the last.
        states: ``[M, K, V]``, where those before each step stay; None to work in place in ``running``.
    """
    running = running[block.rows[0] * heads :]
    steps: List[Tuple[torch.Tensor, torch.Tensor, Optional[torch.Tensor]]] = []
    if states is None:
        state = running
        for count in block.counts:
            if state.shape[0] != count * heads:
                state = running[: count * heads]
            steps.append((state, state, None))
        return steps
    places = states.split([count * heads for count in block.counts])
    places[0].copy_(running[: places[0].shape[0]])
    for place, following in zip(places, places[1:]):
        if place.shape[0] == following.shape[0]:
            steps.append((place, following, None))
        else:
            steps.append((place, running[: place.shape[0]], following))
    return [*steps, (places[-1], running[: places[-1].shape[0]], None)]


def _scan_by_transitions(
    block: Block, heads: int, c: Chunks, A_inv: Optional[torch.Tensor], running: torch.Tensor, v_new: torch.Tensor,
    o: torch.Tensor, states: Optional[torch.Tensor],
) -> None:
    """`scan` in the form of transitions, with one product for each chunk."""
    w = None if A_inv is None else torch.bmm(A_inv, c.k_in)
    if A_inv is not None:
        torch.bmm(A_inv, c.v_in, out=v_new)
    stored = torch.bmm(c.k_out.transpose(1, 2), v_new)
    stored = stored if c.kv is None else stored.add_(c.kv)
    states = torch.empty_like(stored) if states is None else states
    steps = split_steps(block, heads, _transition(c, w), stored)
    for (transition, added), (state, after, following) in zip(steps, state_buffers(block, heads, running, states)):
        torch.baddbmm(added, transition, state, out=after)
        if following is not None:
            following.copy_(after[: following.shape[0]])
    if w is not None:
        v_new.baddbmm_(w, states, alpha=-1)
    torch.bmm(c.q_in, states, out=o)
    if c.o_v is not None:
        o.add_(c.o_v)


def _scan_bwd_by_transitions(
    block: Block, heads: int, c: Chunks, A_inv_T: Optional[torch.Tensor], states: torch.Tensor, v_new: torch.Tensor,
    running: torch.Tensor, d: ScanGrads,
) -> None:
    """`scan_bwd` in the form of transitions, with one product for each chunk."""
    w = None if A_inv_T is None else torch.bmm(A_inv_T.transpose(1, 2), c.k_in)
    reads = torch.bmm(c.q_in.transpose(1, 2), d.out[:, : block.chunk])
    if w is not None:
        reads.baddbmm_(w.transpose(1, 2), d.v_new, alpha=-1)
    after, running = torch.empty_like(states) if d.after is None else d.after, running[block.rows[0] * heads :]
    transition = _transition(c, w).transpose(1, 2)
    for transition_T, read, dh in reversed(list(split_steps(block, heads, transition, reads, after))):
        dh.copy_(running[: dh.shape[0]])
        torch.baddbmm(read, transition_T, dh, out=running[: dh.shape[0]])
    d.v_new.baddbmm_(c.k_out, after)
    if A_inv_T is not None:
        torch.neg(torch.bmm(A_inv_T, d.v_new, out=d.v_in), out=d.out[:, block.chunk :])
    torch.bmm(d.out, states.transpose(1, 2), out=d.qk_in)
    torch.bmm(v_new, after.transpose(1, 2), out=d.k_out)
    torch.sum(after * states, 2 if c.g_last.shape[1] > 1 else (1, 2), keepdim=True, out=d.g_last)


def _transition(c: Chunks, w: Optional[torch.Tensor]) -> torch.Tensor:
    """``P = g_last I - k_out^T w``, ``[M, K, K]``; ``w = A_inv k_in``."""
    k_out = c.k_out.transpose(1, 2)
    size = k_out.shape[1]
    transition = k_out.new_zeros(k_out.shape[0], size, size) if w is None else torch.bmm(k_out, w).neg_()
    transition.diagonal(dim1=1, dim2=2).add_(c.g_last.squeeze(2))
    return transition

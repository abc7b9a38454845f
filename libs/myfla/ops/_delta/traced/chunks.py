"""The chunk form of every family in plain operations.

No operation depends on a tensor's values, and in a compiled graph only shapes depend on the length (the rule is in
`myfla.utils.tracing`). The form can be differentiated any number of times.
"""

from typing import Any, Callable, List, Optional, Tuple

import torch

from myfla.ops._delta.call import Call, Result, call_dtype
from myfla.ops._delta.chunk.recurrence import Chunks
from myfla.ops._delta.chunk.triangular import substitute
from myfla.ops._delta.families.base import Family, Tensors
from myfla.utils.dtypes import without_autocast
from myfla.utils.l2norm import l2norm as normalise
from myfla.utils.rows import from_rows, to_rows
from myfla.utils.tracing import compiling, exporting

__all__ = ["traced_chunks", "traced_rule"]


def _torch_scan() -> Optional[Callable[..., Any]]:
    """None where it is missing or without gradients: there the loop over chunks becomes part of the graph."""
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 9):
        return None
    try:
        from torch._higher_order_ops.scan import scan
    except ImportError:
        return None
    return scan


_scan = _torch_scan()
_largest = torch.sym_max if hasattr(torch.library, "custom_op") else max  # the compiler of PyTorch 2.3 knows only this


def traced_chunks(
    family: Family, x: Tensors, initial_state: Optional[torch.Tensor], scale: float, l2norm: bool,
    cu_seqlens: Optional[torch.Tensor], dtype: torch.dtype, out_dtype: torch.dtype,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """The rule over checked arguments.

    Args:
        family: which rule.
        x: its tensors.
        initial_state: ``[N, HV, K, V]`` or None.
        scale: factor on q.
        l2norm: bring q and k to length one first.
        cu_seqlens: ``[N + 1]`` or None; computed as a batch of N rows as long as all sequences together.
        dtype: of the computation.
        out_dtype: of the outputs.

    Returns:
        o ``[B, T, HV, V]`` and the final states ``[N, HV, K, V]`` in ``dtype``.
    """
    return _rule(x[2], family, x, initial_state, scale, l2norm, cu_seqlens, dtype, out_dtype)


@without_autocast
def _rule(
    v: torch.Tensor, family: Family, x: Tensors, initial_state: Optional[torch.Tensor], scale: float, l2norm: bool,
    cu_seqlens: Optional[torch.Tensor], dtype: torch.dtype, out_dtype: torch.dtype,
) -> Tuple[torch.Tensor, torch.Tensor]:
    if cu_seqlens is not None:
        rows = [to_rows(t, cu_seqlens) for t in x]
        o, final = _rule(rows[2], family, rows, initial_state, scale, l2norm, None, dtype, out_dtype)
        return from_rows(o, cu_seqlens), final
    tokens, heads, key, value = v.shape[1], v.shape[2], x[1].shape[3], v.shape[3]
    split = [
        split_chunks((t if t.dim() == 4 else t.unsqueeze(-1)).to(dtype), family.traced_chunk, heads) for t in x
    ]  # fmt: skip
    if l2norm:
        split[:2] = [normalise(t) for t in split[:2]]
    p = family.plain(split, scale)
    u, w, chunk = p.v_in, None, p.k_out.shape[-2]
    q_in, k_in = p.qk_in[..., :chunk, :], p.qk_in[..., chunk:, :]
    if p.system is not None:
        solved = _solve_unit_lower(p.system.tril(-1), torch.cat([p.v_in, k_in], dim=-1))
        u, w = solved.split([value, key], dim=-1)
    if initial_state is None:
        state = v.new_zeros(v.shape[0], heads, key, value, dtype=dtype)
    else:
        state = initial_state.to(dtype).contiguous()
    stored = p.k_out.transpose(-1, -2) @ u
    states, final = _states_before(p, w, stored if p.kv is None else stored + p.kv, state)
    v_new = u if w is None else u - w @ states
    o = q_in @ states + p.A_qk @ v_new
    return join_chunks(o if p.o_v is None else o + p.o_v, tokens).to(out_dtype), final


def traced_rule(call: Call) -> Result:
    """The rule over a checked call."""
    call = call.activated(zero_g=True)
    return traced_chunks(
        call.family, call.x, call.initial_state, call.scale, call.l2norm, call.cu_seqlens, call_dtype(call),
        call.out_dtype,
    )  # fmt: skip


def split_chunks(x: torch.Tensor, chunk: int, heads: int) -> torch.Tensor:
    """``[B, T, H, D]`` as ``[count, B, heads, C, D]``, with zeros after the end, and heads repeated."""
    batch, tokens, own, size = x.shape
    count = _count(tokens, chunk)
    # A gather, not a pad: the size of a pad is a difference, and an exporter cannot know that it is positive.
    place = torch.arange(count * chunk, device=x.device)
    x = x.index_select(1, place.clamp(max=tokens - 1)).masked_fill((place >= tokens).view(-1, 1, 1), 0)
    x = x.view(batch, count, chunk, own, size).permute(1, 0, 3, 2, 4)
    return x if own == heads else x.repeat_interleave(heads // own, dim=2)


def _count(tokens: int, chunk: int) -> int:
    """The number of chunks. A compiled graph has at least two, and at least one padding position: so it serves every
    length from 2 on, while conditions such as "is there padding?" would each compile another graph."""
    if not compiling() or (exporting() and isinstance(tokens, int)):
        return -(-tokens // chunk)
    if exporting():  # its solver does not support a maximum
        return tokens // chunk + 2
    return _largest(tokens // chunk + 1, 2)


def join_chunks(x: torch.Tensor, tokens: int) -> torch.Tensor:
    """The inverse of `split_chunks`."""
    rows = x.permute(1, 0, 3, 2, 4).flatten(1, 2)
    return rows.index_select(1, torch.arange(tokens, device=x.device)) if exporting() else rows[:, :tokens]


def _solve_unit_lower(lower: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """``(I + lower)^-1 right`` for strictly lower triangular ``lower [..., C, C]``."""
    if not exporting():
        return torch.linalg.solve_triangular(lower, right, upper=False, unitriangular=True)
    return substitute(lower) @ right


def _states_before(
    p: Chunks, w: Optional[torch.Tensor], stored: torch.Tensor, state: torch.Tensor
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Run ``h <- g_last h - k_out^T (w h) + stored`` over chunks: the state before each ``[count, ..., K, V]``, and the
    last one. A Python loop, or in a compiled graph ``torch._higher_order_ops.scan``: one graph for every length."""
    inputs: List[torch.Tensor] = [p.g_last, stored]
    if w is not None:
        inputs += [p.k_out.transpose(-1, -2), w]
    if _scan is not None and compiling() and not (exporting() and isinstance(stored.shape[0], int)):
        last, before = _scan(_scan_step, state, tuple(inputs), dim=0)
        return before, last
    states: List[torch.Tensor] = []
    for step in zip(*(x.unbind(0) for x in inputs)):
        states.append(state)
        state = _advance(state, *step)
    return torch.stack(states) if states else stored, state  # without chunks `stored` is empty, of the right shape


def _advance(
    state: torch.Tensor, g_last: torch.Tensor, stored: torch.Tensor, k_out: Optional[torch.Tensor] = None,
    w: Optional[torch.Tensor] = None,
) -> torch.Tensor:
    after = g_last * state + stored
    return after if k_out is None or w is None else after - k_out @ (w @ state)


def _scan_step(state: torch.Tensor, inputs: Any) -> Tuple[torch.Tensor, torch.Tensor]:
    return _advance(state, *inputs), state.clone()

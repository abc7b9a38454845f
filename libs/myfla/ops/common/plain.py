"""What the plain forms of both delta rules share: chunks of a batch, decays within one, and the scan over them.

A plain form is what a compiler, an exporter or a function transform sees; `myfla.utils.tracing` has the rule. Nothing
here depends on a tensor's values, and in a compiled graph nothing but shapes depends on the length.
"""

from typing import Any, Callable, List, Optional, Tuple

import torch

from myfla.ops.common.triangular import substitute
from myfla.utils.tracing import compiling, exporting

__all__ = ["first_state", "join_chunks", "solve_unit_lower", "split_chunks", "states_before", "sums_between"]


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


def split_chunks(x: torch.Tensor, chunk: int, heads: int) -> torch.Tensor:
    """``[B, T, H, D]`` as ``[M, B, heads, chunk, D]``, with zeros after the end, and heads repeated."""
    batch, tokens, own, size = x.shape
    count = _count(tokens, chunk)
    # A gather, not a pad: the size of a pad is a difference, of which an exporter cannot know that it is positive.
    place = torch.arange(count * chunk, device=x.device)
    x = x.index_select(1, place.clamp(max=tokens - 1)).masked_fill((place >= tokens).view(-1, 1, 1), 0)
    x = x.view(batch, count, chunk, own, size).permute(1, 0, 3, 2, 4)
    return x if own == heads else x.repeat_interleave(heads // own, dim=2)


def _count(tokens: int, chunk: int) -> int:
    """How many chunks. A compiled graph has at least two, and at least one pad: it serves every length from 2 on, where
    questions like "is there a pad?" would each compile another one."""
    if not compiling() or (exporting() and isinstance(tokens, int)):
        return -(-tokens // chunk)
    if exporting():  # whose solver does not see through a maximum
        return tokens // chunk + 2
    return _largest(tokens // chunk + 1, 2)


def join_chunks(x: torch.Tensor, tokens: int) -> torch.Tensor:
    """The inverse of `split_chunks`."""
    whole = x.permute(1, 0, 3, 2, 4).flatten(1, 2)
    return whole.index_select(1, torch.arange(tokens, device=x.device)) if exporting() else whole[:, :tokens]


def sums_between(g: torch.Tensor) -> torch.Tensor:
    """``L[i, j] = g[j + 1] + ... + g[i]`` for ``i >= j`` of ``g [..., C, D]``, and -inf above the diagonal.

    Each is summed by itself, not as a difference: exact where g is large, and safe where it is -inf.

    Returns:
        ``[..., C, C, D]``.
    """
    size = g.shape[-2]
    below = torch.ones(size, size, dtype=torch.bool, device=g.device).tril(-1).unsqueeze(-1)
    sums = torch.where(below, g.unsqueeze(-2), g.new_zeros(())).cumsum(-3)
    upper = torch.ones(size, size, dtype=torch.bool, device=g.device).triu(1).unsqueeze(-1)
    return sums.masked_fill(upper, -float("inf"))


def solve_unit_lower(lower: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """``(I + lower)^-1 right`` for strictly lower triangular ``lower [..., C, C]``."""
    if not exporting():
        return torch.linalg.solve_triangular(lower, right, upper=False, unitriangular=True)
    return substitute(lower) @ right


def states_before(
    decay: torch.Tensor, write: torch.Tensor, read: torch.Tensor, given: torch.Tensor, state: torch.Tensor
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Run ``S <- decay S + write^T (read S) + given`` over chunks.

    A Python loop, or in a compiled graph ``torch._higher_order_ops.scan``: one graph for every number of chunks.

    Args:
        decay: ``[M, ..., K or 1, 1]``.
        write, read: ``[M, ..., C, K]``.
        given: ``[M, ..., K, V]``.
        state: ``[..., K, V]``.

    Returns:
        the state before each chunk ``[M, ..., K, V]``, and the last one.
    """
    write = write.transpose(-1, -2)
    if _scan is not None and compiling() and not (exporting() and isinstance(decay.shape[0], int)):
        last, before = _scan(_scan_step, state, (decay, write, read, given), dim=0)
        return before, last
    states: List[torch.Tensor] = []
    for d, w, r, x in zip(decay.unbind(0), write.unbind(0), read.unbind(0), given.unbind(0)):
        states.append(state)
        state = _advance(state, d, w, r, x)
    return torch.stack(states) if states else state.new_zeros(0, *state.shape), state


def _advance(state: torch.Tensor, d: torch.Tensor, w: torch.Tensor, r: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return d * state + w @ (r @ state) + x


def _scan_step(state: torch.Tensor, xs: Any) -> Tuple[torch.Tensor, torch.Tensor]:
    return _advance(state, *xs), state.clone()


def first_state(
    state: Optional[torch.Tensor], like: torch.Tensor, rows: int, heads: int, key: int, value: int, dtype: torch.dtype
) -> torch.Tensor:
    """``[N, HV, K, V]`` in the accumulation's dtype, contiguous; zeros if there is none."""
    if state is None:
        return like.new_zeros(rows, heads, key, value, dtype=dtype)
    return state.to(dtype).contiguous()

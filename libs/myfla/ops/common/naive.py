"""What the naive forms share: their inputs in one dtype, and the rules chunk by chunk, a step of the algebra a line."""

from typing import List, Optional, Sequence, Tuple

import torch

from myfla.utils.dtypes import accumulation_dtype

__all__ = ["chunk_loop", "decayed_products", "in_one_dtype"]


def in_one_dtype(
    x: Sequence[torch.Tensor], initial_state: Optional[torch.Tensor], dtype: Optional[torch.dtype] = None
) -> Tuple[List[torch.Tensor], torch.Tensor]:
    """The tensors and the first state, converted.

    Args:
        x: ``[B, T, H, ...]`` each, of the same heads; q, k and v first.
        initial_state: ``[B, H, K, V]`` or broadcastable; zeros if None.
        dtype: by default what all of them are accumulated in.
    """
    k, v = x[1:3]
    dtype = accumulation_dtype(*x, initial_state) if dtype is None else dtype
    state = v.new_zeros(v.shape[0], v.shape[2], k.shape[3], v.shape[3], dtype=dtype)
    return [t.to(dtype) for t in x], state if initial_state is None else state + initial_state.to(dtype)


def chunk_loop(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor, erase: Optional[torch.Tensor], scale: float,
    state: torch.Tensor, chunk_size: int, before: bool = False,
) -> Tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """``S <- diag(exp(g)) S + k (v - S^T erase)^T;  o = scale S^T q``, all in one dtype.

    With ``c`` the log decay summed from the chunk's start, and ``<x, y>_ts = sum_d x_td y_sd exp(c_t - c_s)_d``, the
    corrections of a chunk solve ``delta_t + <erase, k>_ts delta_s = v_t - (exp(c_t) erase_t)^T S`` over s < t.

    Args:
        q, k: ``[B, T, H, K]``.
        v: ``[B, T, H, V]``.
        g: ``[B, T, H]`` or ``[B, T, H, K]`` log decay.
        erase: ``[B, T, H, K]``, or None where nothing is erased.
        scale: factor on q.
        state: ``[B, H, K, V]``.
        chunk_size: tokens in a chunk; any T.
        before: ``erase`` reads the state before it decays.

    Returns:
        o ``[B, T, H, V]`` and the final state.
    """
    g = g if g.dim() == 4 else g.unsqueeze(-1)
    given = (q, k, v, g, k if erase is None else erase)
    outputs: List[torch.Tensor] = []
    for start in range(0, q.shape[1], chunk_size):
        qc, kc, delta, gc, ec = (x[:, start : start + chunk_size].transpose(1, 2) for x in given)
        c = gc.cumsum(-2)
        if erase is not None:
            seen = c - gc if before else c
            system = decayed_products(ec, kc, seen, c, -1)
            right = delta - (seen.exp() * ec) @ state
            delta = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
        outputs.append(scale * ((c.exp() * qc) @ state + decayed_products(qc, kc, c, c, 0) @ delta))
        last = c[:, :, -1:]
        state = last.transpose(-1, -2).exp() * state + (kc * (last - c).exp()).transpose(-1, -2) @ delta
    return torch.cat(outputs, dim=2).transpose(1, 2) if outputs else torch.zeros_like(v), state


def decayed_products(
    x: torch.Tensor, y: torch.Tensor, of_x: torch.Tensor, of_y: torch.Tensor, diagonal: int
) -> torch.Tensor:
    """``sum_d x_td y_sd exp(of_x_t - of_y_s)_d`` on and below a diagonal, zero above.

    Args:
        x, y: ``[..., C, K]``.
        of_x, of_y: ``[..., C, 1 or K]`` summed log decays.
        diagonal: the highest that is kept.

    Returns:
        ``[..., C, C]``.
    """
    keep = torch.ones(x.shape[-2], x.shape[-2], dtype=torch.bool, device=x.device).tril(diagonal)[..., None]
    decay = (of_x[..., :, None, :] - of_y[..., None, :, :]).masked_fill(~keep, -float("inf")).exp()
    if decay.shape[-1] == 1:
        return (x @ y.transpose(-1, -2)) * decay[..., 0]
    return (x[..., :, None, :] * y[..., None, :, :] * decay).sum(-1)

"""The rules in their plainest form, token by token: the specification.

For every token, with the state ``S [K, V]`` of one head::

    S     <- exp(g_t) S                          forget; g one number, or one for each key channel
    error  = v_t - S^T k_t                       what the memory gets wrong about k_t
    S     <- S + k_t (beta_t error)^T            correct it
    o_t    = scale * S^T q_t                     read

(Gated DeltaNet, arXiv 2412.06464, eq. 10; Kimi Delta Attention, arXiv 2510.26692), and with a transition that is
diagonal plus low rank (RWKV-7 "Goose", arXiv 2503.14456, transposed)::

    S    <- diag(exp(gk_t)) S + b_t (a_t^T S)^T + k_t v_t^T        a reads the state before it decays
    o_t   = scale * S^T q_t

Without a correction (gated linear attention, arXiv 2312.06635): ``S <- exp(g_t) S + k_t v_t^T``.
"""

from typing import List, Optional, Tuple

import torch

__all__ = ["delta_loop", "dplr_loop", "gla_loop"]


def delta_loop(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor, beta: torch.Tensor, scale: float,
    state: torch.Tensor, erase: Optional[torch.Tensor] = None, before: bool = False,
) -> Tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """The delta rule with decay, all in one dtype.

    Args:
        q, k: ``[B, T, H, K]``.
        v: ``[B, T, H, V]``.
        g: ``[B, T, H]`` or ``[B, T, H, K]`` log decay.
        beta: ``[B, T, H]``, or ``[B, T, H, V]`` for each value channel.
        scale: factor on q.
        state: ``[B, H, K, V]``.
        erase: ``[B, T, H, K]`` keys whose values are taken out, k by default (Comba, Gated DeltaNet 2).
        before: they read the state before it decays.

    Returns:
        o ``[B, T, H, V]`` and the final state.
    """
    q, erase = q * scale, k if erase is None else erase
    g, beta = (x if x.dim() == 4 else x.unsqueeze(-1) for x in (g, beta))
    outputs: List[torch.Tensor] = []
    for t in range(q.shape[1]):
        decayed = state * g[:, t, :, :, None].exp()
        error = v[:, t] - torch.einsum("bhkv,bhk->bhv", state if before else decayed, erase[:, t])
        state = decayed + torch.einsum("bhk,bhv->bhkv", k[:, t], beta[:, t] * error)
        outputs.append(torch.einsum("bhkv,bhk->bhv", state, q[:, t]))
    return torch.stack(outputs, dim=1) if outputs else torch.zeros_like(v), state


def dplr_loop(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, a: torch.Tensor, b: torch.Tensor, gk: torch.Tensor,
    scale: float, state: torch.Tensor,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """The rule with a diagonal-plus-low-rank transition, all in one dtype.

    Args:
        q, k, a, b, gk: ``[B, T, H, K]``.
        v: ``[B, T, H, V]``.
        scale: factor on q.
        state: ``[B, H, K, V]``.

    Returns:
        o ``[B, T, H, V]`` and the final state.
    """
    q = q * scale
    outputs: List[torch.Tensor] = []
    for t in range(q.shape[1]):
        read = (a[:, t, :, :, None] * state).sum(-2, keepdim=True)
        state = state * gk[:, t, :, :, None].exp() + b[:, t, :, :, None] * read
        state = state + k[:, t, :, :, None] * v[:, t, :, None, :]
        outputs.append((q[:, t, :, :, None] * state).sum(-2))
    return torch.stack(outputs, dim=1) if outputs else torch.zeros_like(v), state


def gla_loop(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor, scale: float, state: torch.Tensor
) -> Tuple[torch.Tensor, torch.Tensor]:
    """A decaying sum of key-value products, all in one dtype.

    Args:
        q, k: ``[B, T, H, K]``.
        v: ``[B, T, H, V]``.
        g: ``[B, T, H]`` or ``[B, T, H, K]`` log decay.
        scale: factor on q.
        state: ``[B, H, K, V]``.

    Returns:
        o ``[B, T, H, V]`` and the final state.
    """
    q, g = q * scale, g if g.dim() == 4 else g.unsqueeze(-1)
    outputs: List[torch.Tensor] = []
    for t in range(q.shape[1]):
        kept = g[:, t].exp().unsqueeze(-1) * state
        state = kept + k[:, t, :, :, None] * v[:, t, :, None, :]
        outputs.append(torch.einsum("bhkv,bhk->bhv", state, q[:, t]))
    return torch.stack(outputs, dim=1) if outputs else torch.zeros_like(v), state

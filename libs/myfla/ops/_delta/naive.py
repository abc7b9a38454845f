"""The rules in their plainest form, token by token: the specification.

For every token, with the state ``S [K, V]`` of one head::

    S     <- exp(g_t) S                          forget; g one number, or one for each key channel
    error  = v_t - S^T k_t                       the error of the state's value for k_t
    S     <- S + k_t (beta_t error)^T            correct it
    o_t    = scale * S^T q_t                     read

(Gated DeltaNet, arXiv 2412.06464, eq. 10; Kimi Delta Attention, arXiv 2510.26692), and with a transition that is
diagonal plus low rank (RWKV-7 "Goose", arXiv 2503.14456, transposed)::

    S    <- diag(exp(gk_t)) S + b_t (a_t^T S)^T + k_t v_t^T        a reads the state before it decays
    o_t   = scale * S^T q_t

Without a correction (gated linear attention, arXiv 2312.06635): ``S <- exp(g_t) S + k_t v_t^T``; with n corrections for
each token (DeltaProduct, arXiv 2502.10297) the second and third line are applied n times.
"""

from typing import Callable, List, Optional, Tuple

import torch

__all__ = ["delta_loop", "dplr_loop", "gla_loop", "product_loop"]

Result = Tuple[torch.Tensor, torch.Tensor]
"""o ``[B, T, H, V]`` and the final state ``[B, H, K, V]``."""


def delta_loop(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor, beta: torch.Tensor, scale: float,
    state: torch.Tensor, erase: Optional[torch.Tensor] = None, before: bool = False,
) -> Result:  # fmt: skip
    """The delta rule with decay, all in one dtype.

    Args:
        q, k: ``[B, T, H, K]``.
        v: ``[B, T, H, V]``.
        g: ``[B, T, H]`` or ``[B, T, H, K]`` log decay.
        beta: ``[B, T, H]``, or ``[B, T, H, V]`` for each value channel.
        scale: factor on q.
        state: ``[B, H, K, V]``.
        erase: ``[B, T, H, K]`` keys whose values are erased (Comba, Gated DeltaNet 2); k by default.
        before: whether they read the state before it decays.
    """

    def step(
        state: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, decay: torch.Tensor,
        beta: torch.Tensor, erase: torch.Tensor,
    ) -> Result:  # fmt: skip
        decayed = decay * state
        error = v - _read(state if before else decayed, erase)
        state = decayed + _outer(k, beta * error)
        return _read(state, q), state

    beta = beta if beta.dim() == 4 else beta.unsqueeze(-1)
    return _each_token(step, state, v, q * scale, k, v, _decay(g), beta, k if erase is None else erase)


def product_loop(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor, beta: torch.Tensor, scale: float,
    state: torch.Tensor,
) -> Result:
    """The delta rule with one decay and n corrections for each token, all in one dtype.

    Args:
        q: ``[B, T, H, K]``.
        k: ``[B, T, n, H, K]``.
        v: ``[B, T, n, H, V]``.
        g: ``[B, T, H]`` log decay.
        beta: ``[B, T, n, H]``.
        scale: factor on q.
        state: ``[B, H, K, V]``.
    """

    def step(
        state: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, decay: torch.Tensor, beta: torch.Tensor
    ) -> Result:
        state = decay * state
        for key, value, strength in zip(k.unbind(1), v.unbind(1), beta.unsqueeze(-1).unbind(1)):
            state = state + _outer(key, strength * (value - _read(state, key)))
        return _read(state, q), state

    return _each_token(step, state, v[:, :, 0], q * scale, k, v, _decay(g), beta)


def dplr_loop(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, a: torch.Tensor, b: torch.Tensor, gk: torch.Tensor,
    scale: float, state: torch.Tensor,
) -> Result:
    """The rule with a diagonal-plus-low-rank transition, all in one dtype.

    Args:
        q, k, a, b, gk: ``[B, T, H, K]``.
        v: ``[B, T, H, V]``.
        scale: factor on q.
        state: ``[B, H, K, V]``.
    """

    def step(
        state: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, a: torch.Tensor, b: torch.Tensor,
        decay: torch.Tensor,
    ) -> Result:  # fmt: skip
        state = decay * state + _outer(b, _read(state, a)) + _outer(k, v)
        return _read(state, q), state

    return _each_token(step, state, v, q * scale, k, v, a, b, _decay(gk))


def gla_loop(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor, scale: float, state: torch.Tensor
) -> Result:
    """A decaying sum of key-value products, all in one dtype.

    Args:
        q, k: ``[B, T, H, K]``.
        v: ``[B, T, H, V]``.
        g: ``[B, T, H]`` or ``[B, T, H, K]`` log decay.
        scale: factor on q.
        state: ``[B, H, K, V]``.
    """

    def step(
        state: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, decay: torch.Tensor
    ) -> Result:
        state = decay * state + _outer(k, v)
        return _read(state, q), state

    return _each_token(step, state, v, q * scale, k, v, _decay(g))


def _each_token(step: Callable[..., Result], state: torch.Tensor, like: torch.Tensor, *x: torch.Tensor) -> Result:
    """``o, state = step(state, *tokens)`` for the tokens ``[B, ...]`` of ``x [B, T, ...]``; without tokens, o has the
    shape of ``like [B, 0, H, V]``."""
    outputs: List[torch.Tensor] = []
    for tokens in zip(*(t.unbind(1) for t in x)):
        o, state = step(state, *tokens)
        outputs.append(o)
    return torch.stack(outputs, dim=1) if outputs else torch.zeros_like(like), state


def _decay(g: torch.Tensor) -> torch.Tensor:
    """``exp(g)`` of ``[B, T, H]`` or ``[B, T, H, K]`` as a factor of states, ``[B, T, H, 1 or K, 1]``."""
    return (g if g.dim() == 4 else g.unsqueeze(-1)).exp().unsqueeze(-1)


def _read(state: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """``S^T k``, ``[B, H, V]``."""
    return torch.einsum("bhkv,bhk->bhv", state, key)


def _outer(key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """``k v^T``, ``[B, H, K, V]``."""
    return key.unsqueeze(-1) * value.unsqueeze(-2)

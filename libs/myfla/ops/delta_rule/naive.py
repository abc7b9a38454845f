"""The delta rule in its plainest form: the specification. Tensors are ``[B, H, T, D]``, as in the official file."""

from typing import Any, Optional, Tuple

import torch

from myfla.ops._delta.naive import delta_loop
from myfla.ops.common.naive import chunk_loop, in_one_dtype
from myfla.utils.dtypes import accumulation_dtype
from myfla.utils.errors import value_error
from myfla.utils.tensors import check_size, check_tensor

__all__ = ["delta_rule_chunkwise", "delta_rule_parallel", "delta_rule_recurrence"]


def delta_rule_recurrence(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    beta: torch.Tensor,
    initial_state: Optional[torch.Tensor] = None,
    output_final_state: bool = True,
) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
    """``S <- S + k (beta (v - S^T k))^T;  o = S^T q / sqrt(K)``, token by token.

    Args:
        q, k: ``[B, H, T, K]``.
        v: ``[B, H, T, V]``.
        beta: ``[B, H, T]``, or ``[B, H, T, V]`` for a strength of each value channel.
        initial_state: ``[B, H, K, V]``, zeros by default.
        output_final_state: return the state after the last token.

    Returns:
        o ``[B, H, T, V]`` in q's dtype, and the final state in float32 (float64 for float64 input) or None.

    Example:
        >>> x = torch.ones(1, 1, 2, 1)
        >>> delta_rule_recurrence(x, x, 3 * x, x[..., 0])[0].flatten().tolist()
        [3.0, 3.0]
    """
    _check("delta_rule_recurrence", q, k, v, beta, initial_state)
    given = [t.transpose(1, 2) for t in (q, k, v, beta)]
    (queries, k, v, beta), state = in_one_dtype(given, initial_state)
    o, state = delta_loop(queries, k, v, torch.zeros_like(queries[..., 0]), beta, q.shape[3] ** -0.5, state)
    return o.transpose(1, 2).to(q.dtype), state if output_final_state else None


def delta_rule_chunkwise(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, beta: torch.Tensor, chunk_size: int = 32
) -> Tuple[torch.Tensor, torch.Tensor]:
    """The same chunk by chunk (`myfla.ops.common.naive`).

    Args:
        q, k: ``[B, H, T, K]``.
        v: ``[B, H, T, V]``.
        beta: ``[B, H, T]``.
        chunk_size: tokens in a chunk; any T.

    Returns:
        o ``[B, H, T, V]`` in q's dtype, and the final state ``[B, H, K, V]`` in float32 (float64 for float64 input).

    Example:
        >>> x = torch.ones(1, 1, 2, 1)
        >>> delta_rule_chunkwise(x, x, 3 * x, x[..., 0])[0].flatten().tolist()
        [3.0, 3.0]
    """
    _check("delta_rule_chunkwise", q, k, v, beta)
    check_size("delta_rule_chunkwise", "chunk_size", chunk_size, 1)
    given = [t.transpose(1, 2) for t in (q, k, v, beta)]
    (queries, keys, values, strength), state = in_one_dtype(given, None)
    writes, g = strength.unsqueeze(-1) * keys, torch.zeros_like(strength)
    o, state = chunk_loop(queries, writes, values, g, keys, q.shape[3] ** -0.5, state, chunk_size)
    return o.transpose(1, 2).to(q.dtype), state


def delta_rule_parallel(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, beta: torch.Tensor, BM: int = 128, BN: int = 32
) -> Tuple[torch.Tensor, torch.Tensor]:
    """All tokens at once: ``o = A (beta v)`` with ``A = tril(q k^T / sqrt(K)) (I + tril(beta k k^T, -1))^-1``.

    Args:
        q, k, v, beta: as `delta_rule_chunkwise`.
        BM, BN: official block sizes; change nothing here.

    Returns:
        o ``[B, H, T, V]`` in q's dtype, and A ``[B, H, T, T]`` in float32 (float64 for float64 input).

    Example:
        >>> x = torch.ones(1, 1, 2, 1)
        >>> delta_rule_parallel(x, x, 3 * x, x[..., 0])[1].flatten().tolist()
        [1.0, 0.0, 0.0, 1.0]
    """
    _check("delta_rule_parallel", q, k, v, beta)
    dtype = accumulation_dtype(q, k, v, beta)
    queries, k, v, beta = (x.to(dtype) for x in (q, k, v, beta.unsqueeze(-1)))
    products, system = (queries @ k.transpose(-1, -2)).tril(), (beta * k @ k.transpose(-1, -2)).tril(-1)
    system = system + torch.eye(system.shape[-1], dtype=dtype, device=system.device)
    A = torch.linalg.solve_triangular(system, products * q.shape[3] ** -0.5, upper=False, left=False)
    return (A @ (beta * v)).to(q.dtype), A


def _check(who: str, q: Any, k: Any, v: Any, beta: Any, initial_state: Any = None) -> None:
    """Refuse tensors that do not fit together; a beta for each value channel is the recurrence's alone."""
    given = {"q": q, "k": k, "v": v, "beta": beta}
    if initial_state is not None:
        given["initial_state"] = initial_state
    for name, x in given.items():
        check_tensor(who, name, x, q if isinstance(q, torch.Tensor) else None, "q")
        if not x.is_floating_point():
            raise value_error(who, name, "must be floating point", x.dtype)
    if q.dim() != 4 or 0 in (q.shape[1], q.shape[3]):
        raise value_error(who, "q", "must have shape [B, H, T, K] with sizes from 1", tuple(q.shape))
    tokens, size = tuple(q.shape[:3]), max(v.shape[-1] if v.dim() else 0, 1)
    strengths = [tokens, (*tokens, size)] if who == "delta_rule_recurrence" else [tokens]
    state = (*tokens[:2], q.shape[3], size)
    fitting = {"k": [tuple(q.shape)], "v": [(*tokens, size)], "beta": strengths, "initial_state": [state]}
    for name, shapes in fitting.items():
        if name in given and tuple(given[name].shape) not in shapes:
            rule = "must have shape " + " or ".join(map(str, shapes))
            raise value_error(who, name, rule, tuple(given[name].shape))

"""The decay gate and the write strength, from what the layer projects.

Log decay of one step: ``g = -exp(A_log) * softplus(a + dt_bias)``, at most 0 (Mamba-2's gate, arXiv 2405.21060;
Gated DeltaNet, arXiv 2412.06464). Write strength: ``beta = sigmoid(b)``, or twice that, so that the transition
``I - beta k k^T`` may have the eigenvalue -1 (arXiv 2411.12537).
"""

from typing import Optional, Tuple

import torch
import torch.nn.functional as F

from myfla.utils.dtypes import accumulation_dtype

__all__ = ["beta_sigmoid", "fused_gdn_gate", "gdn_gate_bwd", "gdn_gate_chunk_cumsum", "naive_gdn_gate"]


def naive_gdn_gate(
    g: torch.Tensor,
    A_log: torch.Tensor,
    dt_bias: Optional[torch.Tensor] = None,
    output_dtype: Optional[torch.dtype] = None,
) -> torch.Tensor:
    """Log decay from the gate's pre-activation, ``-exp(A_log) * softplus(g + dt_bias)``.

    Args:
        g: ``[..., HV]`` pre-activation.
        A_log: ``[HV]``.
        dt_bias: ``[HV]`` or None.
        output_dtype: dtype of the result; by default what it is computed in, float32 or, if any input is, float64.

    Returns:
        ``[..., HV]``, at most 0.

    Example:
        >>> naive_gdn_gate(torch.zeros(1, 1), torch.zeros(1))
        tensor([[-0.6931]])
    """
    dtype = accumulation_dtype(g, A_log)
    x = g.to(dtype) if dt_bias is None else g.to(dtype) + dt_bias.to(dtype)
    decay = -A_log.to(dtype).exp() * F.softplus(x)
    return decay if output_dtype is None else decay.to(output_dtype)


def fused_gdn_gate(
    g: torch.Tensor,
    A_log: torch.Tensor,
    dt_bias: Optional[torch.Tensor] = None,
    output_dtype: Optional[torch.dtype] = None,
) -> torch.Tensor:
    """`naive_gdn_gate` under its official name; differentiable in all three tensors.

    Example:
        >>> fused_gdn_gate(torch.zeros(1, 1), torch.zeros(1))
        tensor([[-0.6931]])
    """
    return naive_gdn_gate(g, A_log, dt_bias, output_dtype)


def beta_sigmoid(beta: torch.Tensor, allow_neg_eigval: bool = False) -> torch.Tensor:
    """Write strength from its pre-activation.

    Args:
        beta: any shape and float dtype.
        allow_neg_eigval: range (0, 2) instead of (0, 1).

    Returns:
        the same shape in float32 (float64 for float64).

    Example:
        >>> beta_sigmoid(torch.zeros(1), allow_neg_eigval=True)
        tensor([1.])
    """
    strength = beta.to(accumulation_dtype(beta)).sigmoid()
    return strength * 2 if allow_neg_eigval else strength


def gdn_gate_bwd(
    g: torch.Tensor, A_log: torch.Tensor, dt_bias: Optional[torch.Tensor], dyg: torch.Tensor
) -> Tuple[torch.Tensor, torch.Tensor, Optional[torch.Tensor]]:
    """Gradients of `naive_gdn_gate`.

    Args:
        g, A_log, dt_bias: its inputs.
        dyg: ``[..., HV]`` gradient of its result.

    Returns:
        gradients of g, A_log and dt_bias (None without one), each in its input's dtype.

    Example:
        >>> gdn_gate_bwd(torch.zeros(1, 1), torch.zeros(1), None, torch.ones(1, 1))[0]
        tensor([[-0.5000]])
    """
    dtype = accumulation_dtype(g, A_log)
    x = g.to(dtype) if dt_bias is None else g.to(dtype) + dt_bias.to(dtype)
    rate = -A_log.to(dtype).exp()
    dyg = dyg.to(dtype)
    dx = dyg * rate * x.sigmoid()
    leading = tuple(range(g.dim() - 1))
    dA_log = (dyg * rate * F.softplus(x)).sum(leading)
    ddt_bias = None if dt_bias is None else dx.sum(leading).to(dt_bias.dtype)
    return dx.to(g.dtype), dA_log.to(A_log.dtype), ddt_bias


def gdn_gate_chunk_cumsum(
    g: torch.Tensor,
    A_log: torch.Tensor,
    chunk_size: int,
    scale: Optional[float] = None,
    dt_bias: Optional[torch.Tensor] = None,
    cu_seqlens: Optional[torch.Tensor] = None,
    chunk_indices: Optional[torch.Tensor] = None,
    output_dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """The gate's log decay, summed from the start of each token's chunk.

    Args:
        g: ``[B, T, HV]`` pre-activation; B is 1 with cu_seqlens.
        A_log, dt_bias: ``[HV]``.
        chunk_size: tokens in a chunk; the first of each sequence starts one.
        scale: factor on the result, e.g. ``1 / log(2)`` for powers of two.
        cu_seqlens: ``[N + 1]`` offsets of packed sequences.
        chunk_indices: official name, not needed here.
        output_dtype: dtype of the result; summed in float64 where the device has it.

    Returns:
        ``[B, T, HV]``.

    Example:
        >>> gdn_gate_chunk_cumsum(torch.zeros(1, 3, 1), torch.zeros(1), 2).flatten()
        tensor([-0.6931, -1.3863, -0.6931])
    """
    decay = naive_gdn_gate(g, A_log, dt_bias)
    dtype = decay.dtype if g.device.type == "mps" else torch.float64
    total = F.pad(decay.to(dtype).cumsum(1), (0, 0, 1, 0))
    position = torch.arange(g.shape[1], device=g.device)
    if cu_seqlens is None:
        start = position - position % chunk_size
    else:
        cu = cu_seqlens.to(torch.int64)
        first = cu[torch.searchsorted(cu, position, right=True) - 1]
        start = position - (position - first) % chunk_size
    result = total[:, 1:] - total.index_select(1, start)
    return (result if scale is None else result * scale).to(output_dtype)

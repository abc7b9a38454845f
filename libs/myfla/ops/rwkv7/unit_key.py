"""The key that is replaced: the projected key, scaled per channel and brought to length one per head."""

from typing import Optional

import torch
from torch.autograd.function import once_differentiable

from myfla.utils.dtypes import accumulation_dtype

__all__ = ["unit_key"]

SHORTEST = 1e-12


def unit_key(k: torch.Tensor, k_k: torch.Tensor, head_dim: int, eps: Optional[float]) -> torch.Tensor:
    """``kk = k k_k / length``, per head.

    Args:
        k: ``[B, T, H * K]`` projected keys.
        k_k: ``[H * K]``.
        head_dim: K.
        eps: added to the squared length; None for ``torch.nn.functional.normalize``'s way, where lengths below 1e-12
            count as 1e-12. There a shorter key gets no gradient, where the exact one would be 1e12 times too large.

    Returns:
        ``[B, T, H, K]`` in k's dtype.

    Example:
        >>> unit_key(torch.tensor([[[3.0, 4.0]]]), torch.ones(2), 2, None).flatten().tolist()
        [0.6000000238418579, 0.800000011920929]
    """
    return _UnitKeyFunction.apply(k, k_k, head_dim, eps)


class _UnitKeyFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, k, k_k, head_dim, eps):
        dtype = accumulation_dtype(k)
        scaled = (k.to(dtype) * k_k.to(dtype)).view(*k.shape[:-1], k.shape[-1] // head_dim, head_dim)
        inverse = _inverse_length(scaled, eps)
        ctx.save_for_backward(k, k_k, inverse)
        ctx.eps = eps
        return scaled.mul_(inverse).to(k.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        k, k_k, inverse = ctx.saved_tensors
        dtype = inverse.dtype
        wide, mix = k.to(dtype), k_k.to(dtype)
        unit = (wide * mix).view(grad.shape).mul_(inverse)
        grad = grad.to(dtype)
        along = (grad * unit).sum(-1, keepdim=True)
        d_scaled = torch.addcmul(grad, unit, along, value=-1).mul_(_finite(inverse, ctx.eps)).view(k.shape)
        d_k_k = (d_scaled * wide).flatten(0, -2).sum(0)
        return d_scaled.mul_(mix).to(k.dtype), d_k_k.to(k_k.dtype), None, None


def _inverse_length(x: torch.Tensor, eps: Optional[float]) -> torch.Tensor:
    if eps is None:
        return torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_(min=SHORTEST).reciprocal_()
    return x.square().sum(-1, keepdim=True).add_(eps).rsqrt_()


def _finite(inverse: torch.Tensor, eps: Optional[float]) -> torch.Tensor:
    """The factor of the gradient: none where the length was too short to have a direction."""
    if eps is not None:
        return inverse
    return torch.where(inverse < 0.5 / SHORTEST, inverse, inverse.new_zeros(()))

"""The key that is written: the projected key, scaled by the in-context learning rate."""

from typing import Optional, Tuple

import torch

from myfla.ops.rwkv7.fused_addcmul import row_blocks
from myfla.utils.autograd import hand_differentiated
from myfla.utils.dtypes import accumulation_dtype
from myfla.utils.errors import value_error

__all__ = ["fused_k_rwkv7", "k_update_ref"]


def k_update_ref(k: torch.Tensor, a: torch.Tensor, ka: torch.Tensor) -> torch.Tensor:
    """``k (1 + (a - 1) ka)`` as plain operations, in the input's dtype: the reference.

    Example:
        >>> k_update_ref(torch.tensor(2.0), torch.tensor(0.5), torch.tensor(1.0))
        tensor(1.)
    """
    return k.addcmul(k * (a - 1), ka)


def fused_k_rwkv7(
    k: torch.Tensor,
    a: torch.Tensor,
    ka: torch.Tensor,
    cu_seqlens: Optional[torch.Tensor] = None,
    cu_seqlens_cpu: Optional[torch.Tensor] = None,
) -> torch.Tensor:
    """``k (1 + (a - 1) ka)``, computed in float32 (float64 for float64 input) and rounded once.

    Args:
        k: ``[B, T, D]`` projected keys.
        a: ``[B, T, D]`` in-context learning rates, in (0, 1).
        ka: ``[D]`` or ``[1, 1, D]``; its gradient has its shape.
        cu_seqlens, cu_seqlens_cpu: official arguments; tokens are independent, so they change nothing.

    Returns:
        ``[B, T, D]`` in k's dtype.

    Raises:
        ValueError: ``a`` has another shape than ``k``.

    Example:
        >>> fused_k_rwkv7(torch.full((1, 1, 1), 2.0), torch.full((1, 1, 1), 0.5), torch.ones(1))
        tensor([[[1.]]])
    """
    if a.shape != k.shape:
        raise value_error("fused_k_rwkv7", "a", f"must have the shape of k, {tuple(k.shape)}", tuple(a.shape))
    return _update_key(k, a, ka)


def _forward(k: torch.Tensor, a: torch.Tensor, ka: torch.Tensor) -> torch.Tensor:
    dtype = accumulation_dtype(k)
    wide = k.to(dtype)
    return torch.addcmul(wide, wide * (a.to(dtype) - 1), ka.to(dtype)).to(k.dtype)


def _backward(grad: torch.Tensor, k: torch.Tensor, a: torch.Tensor, ka: torch.Tensor) -> Tuple[torch.Tensor, ...]:
    dtype, width = accumulation_dtype(k), k.shape[-1]
    rows = [x.reshape(-1, width) for x in (grad, k, a)]
    dk, da = (torch.empty_like(x) for x in rows[1:])
    dka, mix = torch.zeros(width, dtype=dtype, device=k.device), ka.to(dtype).reshape(width)
    for at in row_blocks(*rows[0].shape):
        g, key, less = (x[at].to(dtype) for x in rows)
        less = less - 1
        own = g * key
        da[at] = own * mix
        dka += (own * less).sum(0)
        dk[at] = g.addcmul(g * mix, less)
    return dk.view(k.shape), da.view(a.shape), dka.to(ka.dtype).view(ka.shape)


_update_key = hand_differentiated(_forward, _backward)

"""RWKV-7's feed-forward: a squared-ReLU network over a mix of each token with the one before it."""

from typing import Tuple

import torch

from myfla.utils.autograd import hand_differentiated
from myfla.utils.dtypes import accumulation_dtype
from myfla.utils.errors import value_error

__all__ = [
    "channel_mixing_rwkv7",
    "channel_mixing_rwkv7_torch",
    "rwkv_mix_torch",
    "rwkv_relu_and_square_torch",
    "squared_relu",
]


def channel_mixing_rwkv7(
    x: torch.Tensor,
    x_prev: torch.Tensor,
    x_k: torch.Tensor,
    key_weight: torch.Tensor,
    value_weight: torch.Tensor,
    inplace: bool = True,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """``relu((x + (x_{t-1} - x) x_k) key_weight)^2 value_weight``.

    Args:
        x: ``[B, T, D]``.
        x_prev: ``[B, D]`` or ``[B, 1, D]``, the token before the first.
        x_k: ``[1, 1, D]`` or ``[D]`` mixing vector.
        key_weight: ``[D, F]``, input first.
        value_weight: ``[F, D]``.
        inplace: official argument; nothing that the caller can see is ever written to.

    Returns:
        the output ``[B, T, D]``, and ``x[-1, :]``: the last *row of the batch*, as the official function returns.

    Raises:
        ValueError: ``x`` is not ``[B, T, D]``.

    Example:
        >>> one = torch.ones(1, 1, 1)
        >>> channel_mixing_rwkv7(one, 0 * one, 0 * one, 2 * one[0], one[0])[0]
        tensor([[[4.]]])
    """
    if x.dim() != 3:
        raise value_error("channel_mixing_rwkv7", "x", "must have shape [B, T, D]", tuple(x.shape))
    mixed = _mix(x, x_prev, x_k)
    return squared_relu(mixed @ key_weight) @ value_weight, x[-1, :]


def channel_mixing_rwkv7_torch(
    x: torch.Tensor, x_prev: torch.Tensor, x_k: torch.Tensor, key_weight: torch.Tensor, value_weight: torch.Tensor
) -> Tuple[torch.Tensor, torch.Tensor]:
    """`channel_mixing_rwkv7` as plain operations: the reference.

    Example:
        >>> one = torch.ones(1, 1, 1)
        >>> channel_mixing_rwkv7_torch(one, 0 * one, 0 * one, 2 * one[0], one[0])[0]
        tensor([[[4.]]])
    """
    return rwkv_relu_and_square_torch(rwkv_mix_torch(x, x_prev, x_k) @ key_weight) @ value_weight, x[-1, :]


def rwkv_mix_torch(x: torch.Tensor, x_prev: torch.Tensor, x_k: torch.Tensor) -> torch.Tensor:
    """``x + (x_{t-1} - x) x_k`` for ``x [B, T, D]`` after ``x_prev [B, D]`` or ``[B, 1, D]``.

    Example:
        >>> rwkv_mix_torch(torch.ones(1, 1, 1), torch.zeros(1, 1), torch.tensor([0.25]))
        tensor([[[0.7500]]])
    """
    before = x_prev.unsqueeze(1) if x_prev.dim() == 2 else x_prev
    return x.addcmul(torch.cat((before.to(x.dtype), x[:, :-1]), dim=1)[:, : x.shape[1]] - x, x_k)


def rwkv_relu_and_square_torch(x: torch.Tensor) -> torch.Tensor:
    """``relu(x)^2``.

    Example:
        >>> rwkv_relu_and_square_torch(torch.tensor([-1.0, 3.0]))
        tensor([0., 9.])
    """
    return torch.relu(x) ** 2


def squared_relu(x: torch.Tensor) -> torch.Tensor:
    """``relu(x)^2``, keeping one tensor for the backward.

    Example:
        >>> squared_relu(torch.tensor([-1.0, 3.0]))
        tensor([0., 9.])
    """
    return _relu_and_square(x)


def _mix_forward(x: torch.Tensor, x_prev: torch.Tensor, x_k: torch.Tensor) -> torch.Tensor:
    """`rwkv_mix_torch` in float32 (float64 for float64 input), each result rounded once."""
    dtype = accumulation_dtype(x)
    return rwkv_mix_torch(*(t.to(dtype) for t in (x, x_prev, x_k))).to(x.dtype)


def _mix_backward(
    grad: torch.Tensor, x: torch.Tensor, x_prev: torch.Tensor, x_k: torch.Tensor
) -> Tuple[torch.Tensor, ...]:
    dtype = accumulation_dtype(x)
    wide, token = grad.to(dtype), x.to(dtype)
    before = x_prev.to(dtype).view(x.shape[0], 1, -1)
    step = torch.cat((before, token[:, :-1]), dim=1)[:, : x.shape[1]].sub_(token)
    d_mix = step.mul_(wide).flatten(0, 1).sum(0)
    to_before = wide * x_k.to(dtype)
    dx = wide - to_before
    dx[:, :-1] += to_before[:, 1:]
    first = to_before[:, 0] if x.shape[1] else before[:, 0] * 0
    return dx.to(x.dtype), first.to(x_prev.dtype).view(x_prev.shape), d_mix.to(x_k.dtype).view(x_k.shape)


def _square_forward(x: torch.Tensor) -> torch.Tensor:
    active = torch.relu(x)
    return active.mul_(active)


def _square_backward(grad: torch.Tensor, x: torch.Tensor) -> Tuple[torch.Tensor, ...]:
    return (torch.relu(x).mul_(grad).mul_(2),)


_mix = hand_differentiated(_mix_forward, _mix_backward)
_relu_and_square = hand_differentiated(_square_forward, _square_backward, rwkv_relu_and_square_torch)

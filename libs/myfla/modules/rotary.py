"""Rotary position embeddings (RoFormer, arXiv 2104.09864): a token's place as rotations of its channels."""

import torch

from myfla.utils.dtypes import accumulation_dtype

__all__ = ["rotary_embedding"]


def rotary_embedding(x: torch.Tensor, positions: torch.Tensor, theta: float = 10000.0) -> torch.Tensor:
    """Rotate channel ``i`` and channel ``i + D/2`` of each head by ``position * theta^(-2i/D)``.

    Angles are float64, so that far positions are as exact as near ones; the result is rounded once.

    Args:
        x: ``[B, T, H, D]`` queries or keys, D even.
        positions: ``[T]`` or ``[B, T]`` integers.
        theta: the slowest rotation turns by about ``1 / theta`` a token.

    Returns:
        ``[B, T, H, D]`` in the number format of x.

    Example:
        >>> x = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2)
        >>> rotary_embedding(x, torch.tensor([0])).flatten().tolist()
        [1.0, 0.0]
    """
    half = x.shape[-1] // 2
    exact = torch.float32 if x.device.type == "mps" else torch.float64  # which has no float64
    rates = theta ** (torch.arange(half, device=x.device, dtype=exact) / -half)
    angles = (positions.to(exact).unsqueeze(-1) * rates).unsqueeze(-2)
    wide = accumulation_dtype(x)
    cos, sin = angles.cos().to(wide), angles.sin().to(wide)
    first, second = x.to(wide).split(half, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)

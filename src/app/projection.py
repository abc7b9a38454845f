"""Embeddings in the plane of their largest variance: principal components, by `torch.linalg.eigh`."""

from typing import List, Tuple

import torch
from torch import Tensor

__all__ = ["principal_plane"]


def principal_plane(embeddings: Tensor) -> Tuple[Tensor, List[float]]:
    """The first two principal components.

    Args:
        embeddings: ``[N, D]``.

    Returns:
        ``(points [N, 2] float64, shares)``: shares of the variance, of both axes. The sign of an axis is such that its
        largest loading is positive; missing components are zeros.

    Example:
        >>> points, shares = principal_plane(torch.tensor([[0.0, 1.0], [4.0, 1.0]]))
        >>> points.tolist(), shares
        ([[-2.0, 0.0], [2.0, 0.0]], [1.0, 0.0])
    """
    centred = embeddings.double() - embeddings.double().mean(0)
    variance, axes = torch.linalg.eigh(centred.t() @ centred)
    variance, axes = variance.flip(0).clamp(min=0), axes.flip(1)[:, :2]
    signs = axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    points = torch.zeros(len(embeddings), 2, dtype=torch.float64)
    points[:, : axes.shape[1]] = centred @ (axes * signs)
    total = float(variance.sum())
    shares = [float(value) / total if total else 0.0 for value in variance[:2]]
    return points + 0.0, shares + [0.0] * (2 - len(shares))  # + 0.0: no minus zeros

"""Several projections of one input as one product by the compiled kernels, in float32 and without autograd.

Weights are ``[N_p, D]`` without gaps; N is the sum of the N_p.
"""

from typing import Any, List, Sequence

import torch

__all__ = ["inputs_of", "project_jointly", "weights_of"]


def project_jointly(kernels: Any, x: torch.Tensor, weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """``x w_p^T`` for each weight, one after another in the columns of one tensor.

    Args:
        kernels: the compiled kernels (`myfla.utils.native`).
        x: ``[B, T, D]`` without gaps.
        weights: of the projections.

    Returns:
        ``[B, T, N]``; for several weights perhaps with a few more columns, which have no values, so that rows begin
        at whole cache lines.
    """
    columns = sum(len(w) for w in weights)
    y = x.new_empty((*x.shape[:2], columns if len(weights) == 1 else (columns + 15) // 16 * 16))
    kernels.products.outputs(x.flatten(0, 1), weights, y.flatten(0, 1))
    return y


def inputs_of(kernels: Any, dy: torch.Tensor, weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """The gradient of x in `project_jointly`, ``[B, T, D]``, from that of its result."""
    dx = dy.new_empty((*dy.shape[:2], weights[0].shape[1]))
    kernels.products.inputs(dy.flatten(0, 1), weights, dx.flatten(0, 1))
    return dx


def weights_of(
    kernels: Any, dy: torch.Tensor, x: torch.Tensor, weights: Sequence[torch.Tensor]
) -> List[torch.Tensor]:
    """The gradients of the weights in `project_jointly`, from that of its result."""
    found = [torch.empty_like(w) for w in weights]
    kernels.products.weights(dy.flatten(0, 1), x.flatten(0, 1), found)
    return found

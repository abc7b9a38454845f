"""Several projections of one input as one product by the compiled kernels, in float32 and without autograd.

Weights are ``[N_p, D]`` without gaps, some may be None: such a projection has no columns; N is the sum of the N_p.
"""

from typing import Any, List, Optional, Sequence, Tuple

import torch

__all__ = ["inputs_of", "places_in", "project_jointly", "weights_of"]

Weights = Sequence[Optional[torch.Tensor]]


def project_jointly(kernels: Any, x: torch.Tensor, weights: Weights) -> torch.Tensor:
    """``x w_p^T`` for each weight, one after another in the columns of one tensor.

    Args:
        kernels: the compiled kernels (`myfla.utils.native`).
        x: ``[B, T, D]`` without gaps.
        weights: of the projections.

    Returns:
        ``[B, T, N]``; for several weights perhaps with a few more columns, which have no values, so that rows begin
        at whole cache lines.
    """
    there = [w for w in weights if w is not None]
    columns = sum(w.shape[0] for w in there)
    columns = columns if len(there) == 1 else (columns + 15) // 16 * 16
    y = kernels.library.empty((x.shape[0], x.shape[1], columns), torch.float32)
    kernels.products.outputs(x, there, y)
    return y


def places_in(y: torch.Tensor, weights: Weights) -> List[Tuple[int, int]]:
    """Where the columns of each weight begin in the result of `project_jointly`, or in its gradient: addresses, and how
    many numbers lie from one token to the next; zeros where there is no weight."""
    at, row = y.data_ptr(), y.shape[2]
    places = []
    for w in weights:
        places.append((0, 0) if w is None else (at, row))
        at += 0 if w is None else 4 * w.shape[0]
    return places


def inputs_of(kernels: Any, dy: torch.Tensor, weights: Weights) -> torch.Tensor:
    """The gradient of x in `project_jointly`, ``[B, T, D]``, from that of its result."""
    there = [w for w in weights if w is not None]
    dx = kernels.library.empty((dy.shape[0], dy.shape[1], there[0].shape[1]), torch.float32)
    kernels.products.inputs(dy, there, dx)
    return dx


def weights_of(kernels: Any, dy: torch.Tensor, x: torch.Tensor, weights: Weights) -> List[Optional[torch.Tensor]]:
    """The gradients of the weights in `project_jointly`, from that of its result; None for those that are."""
    found = [None if w is None else torch.empty_like(w) for w in weights]
    kernels.products.weights(dy, x, [w for w in found if w is not None])
    return found

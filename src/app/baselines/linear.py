"""Logistic and ridge regression in float64. Both are convex, so the result does not depend on the method."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["logistic_regression", "ridge_regression"]

_PENALTIES = torch.logspace(-3, 5, 17, dtype=torch.float64)


class _Scale(NamedTuple):
    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, x: Tensor) -> "_Scale":
        std = x.std(0, unbiased=False)
        return cls(x.mean(0), torch.where(std > 1e-12 * (1 + x.mean(0).abs()), std, torch.ones_like(std)))

    def apply(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def logistic_regression(x: Tensor, y: Tensor, test: Tensor, classes: int) -> Tensor:
    """Classes of ``test`` by multinomial logistic regression: the sum of cross-entropies plus half the squared weights
    is minimised, as by scikit-learn's ``LogisticRegression(C=1)`` on standardised features.

    Args:
        x: ``[N, F]`` features.
        y: ``[N]`` classes.
        test: ``[M, F]`` features.
        classes: the number of classes.

    Returns:
        ``[M]`` int64.
    """
    scale = _Scale.of(x)
    x, test = scale.apply(x), scale.apply(test)
    weight = torch.zeros(x.shape[1], classes, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    steps = torch.optim.LBFGS([weight, bias], max_iter=300, tolerance_grad=1e-6 * len(x), history_size=20,
                              line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        steps.zero_grad()
        value = F.cross_entropy(x @ weight + bias, y, reduction="sum") + 0.5 * weight.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        steps.step(loss)
    return (test @ weight.detach() + bias.detach()).argmax(1)


def ridge_regression(x: Tensor, y: Tensor, test: Tensor) -> Tensor:
    """Values of ``test`` by ridge regression; the penalty is the one with the lowest leave-one-out error.

    Args:
        x: ``[N, F]`` features.
        y: ``[N, K]`` values.
        test: ``[M, F]`` features.

    Returns:
        ``[M, K]``.
    """
    scale, mean = _Scale.of(x), y.mean(0)
    u, s, vh = torch.linalg.svd(scale.apply(x), full_matrices=False)
    target = u.T @ (y - mean)
    best, error = _PENALTIES[-1], torch.tensor(float("inf"), dtype=torch.float64)
    for penalty in _PENALTIES:
        shrink = s.square() / (s.square() + penalty)
        leverage = (u.square() * shrink).sum(1) + 1 / len(x)  # the mean is left out as well
        missed = (y - mean - u @ (shrink[:, None] * target)) / (1 - leverage).clamp(min=1e-9)[:, None]
        found = (missed / y.std(0, unbiased=False).clamp(min=1e-300)).square().mean()
        if found < error:
            best, error = penalty, found
    return mean + scale.apply(test) @ (vh.T @ ((s / (s.square() + best))[:, None] * target))

"""Two feature maps that belong to the GatedDeltaNet module's public names, and activations by name."""

import functools
import warnings
from typing import Callable, Dict, List

import torch
import torch.nn.functional as F

__all__ = ["ACTIVATIONS", "elu_p1", "sum_norm"]

ACTIVATIONS: Dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "logsigmoid": F.logsigmoid,
    "silu": F.silu,
    "swish": F.silu,
    "sqrelu": lambda x: F.relu(x).square(),
    "gelu": lambda x: F.gelu(x, approximate="tanh"),
}
"""Those that layers take by name."""


def _fused_on_gpu(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Compile a function at its first call with a GPU tensor, where this PyTorch can; call it as it is elsewhere.

    On a CPU a compiler run costs seconds and may not be possible, for a function of two operations.
    """
    best: List[Callable[[torch.Tensor], torch.Tensor]] = []

    @functools.wraps(function)
    def call(x: torch.Tensor) -> torch.Tensor:
        if not (x.is_cuda and hasattr(torch, "compile")):
            return function(x)
        if not best:
            best.append(torch.compile(function))
        try:
            return best[0](x)
        except Exception as problem:
            result = function(x)  # raises again where the input was at fault, and not the compiler
            warnings.warn(f"{function.__name__} runs uncompiled: torch.compile failed with {type(problem).__name__}",
                          stacklevel=2)
            best[0] = function
            return result

    return call


@_fused_on_gpu
def elu_p1(x: torch.Tensor) -> torch.Tensor:
    """``elu(x) + 1``, positive everywhere.

    Args:
        x: any shape, floating point.

    Returns:
        The same shape and dtype.

    Example:
        >>> elu_p1(torch.tensor([0.0, 2.0]))
        tensor([1., 3.])
    """
    return (F.elu(x) + 1.0).to(x)


@_fused_on_gpu
def sum_norm(x: torch.Tensor) -> torch.Tensor:
    """``x`` over its sum along the last axis.

    Args:
        x: ``[..., D]``, floating point.

    Returns:
        The same shape and dtype.

    Example:
        >>> sum_norm(torch.tensor([1.0, 3.0]))
        tensor([0.2500, 0.7500])
    """
    return (x / x.sum(-1, keepdim=True)).to(x)

"""The dtypes in which computations are made."""

from typing import Optional

import torch


def accumulation_dtype(*tensors: Optional[torch.Tensor]) -> torch.dtype:
    """The format that states and sums are kept in: float64 if any tensor is float64, else float32.

    Example:
        >>> accumulation_dtype(torch.zeros(1, dtype=torch.bfloat16))
        torch.float32
    """
    for t in tensors:
        if t is not None and t.dtype == torch.float64:
            return torch.float64
    return torch.float32


def has_float64(device: torch.device) -> bool:
    """Whether the device computes in float64 (Apple's MPS does not)."""
    return device.type != "mps"

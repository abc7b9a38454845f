"""What a PyTorch or Python cannot do yet: the tests that need it are skipped there, and say so."""

import pytest
import torch


def skip_without_products(dtype: torch.dtype) -> None:
    """Skip where the CPU multiplies no matrices of a number format (float16 before torch 2.2)."""
    try:
        torch.ones(2, 2, dtype=dtype) @ torch.ones(2, 2, dtype=dtype)
    except RuntimeError as problem:
        pytest.skip(f"torch {torch.__version__}: {problem}")

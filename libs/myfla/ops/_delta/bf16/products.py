"""Products of half-precision matrices, summed in float32, for the matrix units of a GPU.

The hardware reads bfloat16 and sums in float32. PyTorch (from 2.8, on CUDA) returns these float32 sums; otherwise, and
on a CPU, the same numbers are computed in float32. Float64 matrices stay float64, so that code that uses these
functions can be compared with a float64 loop on any machine.
"""

from typing import Optional

import torch

from myfla.utils.tracing import compiling

__all__ = ["accumulate", "has_matrix_units", "product", "scale_into"]

_SUMS = hasattr(torch.ops.aten.bmm, "dtype_out") and hasattr(torch.ops.aten.baddbmm, "dtype_out")


def has_matrix_units(device: torch.device) -> bool:
    """Whether products of half-precision matrices run on matrix units here, and PyTorch can return their float32
    sums."""
    return _SUMS and device.type == "cuda"


def product(
    a: torch.Tensor, b: torch.Tensor, dtype: Optional[torch.dtype] = None, alpha: float = 1.0,
    out: Optional[torch.Tensor] = None,
) -> torch.Tensor:
    """``alpha a b``.

    Args:
        a: ``[M, I, J]``.
        b: ``[M, J, L]``, in a's dtype.
        dtype: of the result, either a's (the default) or that of the sums.
        alpha: factor, applied before the sums are rounded.
        out: receives the result, ``[M, I, L]`` with one dense axis; determines the dtype.
    """
    if out is None:
        out = torch.empty((a.shape[0], a.shape[1], b.shape[2]), dtype=dtype or a.dtype, device=a.device)
    if out.dtype == a.dtype:
        return torch.bmm(a, b, out=out) if alpha == 1 else torch.baddbmm(out, a, b, beta=0, alpha=alpha, out=out)
    if has_matrix_units(a.device):
        return torch.baddbmm(out, a, b, out.dtype, beta=0, alpha=alpha, out=out)
    return torch.bmm(a.to(out.dtype), b.to(out.dtype), out=out).mul_(alpha)


def accumulate(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor, alpha: float = 1.0) -> torch.Tensor:
    """``total += alpha a b``, in place; shapes and dtypes as `product`."""
    if total.dtype == a.dtype:
        return total.baddbmm_(a, b, alpha=alpha)
    if has_matrix_units(a.device):
        return torch.baddbmm(total, a, b, total.dtype, alpha=alpha, out=total)
    return total.baddbmm_(a.to(total.dtype), b.to(total.dtype), alpha=alpha)


def scale_into(out: torch.Tensor, x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """``out = x * factor``, multiplied in the wider of their dtypes and rounded once."""
    # A compiler fuses this. Without one, a product and a conversion are faster than one kernel that mixes dtypes.
    if compiling() or (x.dtype == factor.dtype and x.dtype != out.dtype):
        return out.copy_(x * factor)
    return torch.mul(x, factor, out=out)

"""Normalise the last axis to unit length, with the small number inside the root as in the official kernels."""

from typing import Any, Optional, Tuple, Union

import torch

from myfla.utils.autograd import backward_through
from myfla.utils.dtypes import accumulation_dtype
from myfla.utils.errors import value_error
from myfla.utils.native import native
from myfla.utils.tensors import check_tensor
from myfla.utils.tracing import tracing


def l2norm_fwd(
    x: torch.Tensor, eps: float = 1e-6, output_dtype: Optional[torch.dtype] = None
) -> Tuple[torch.Tensor, torch.Tensor]:
    """`l2norm` without autograd.

    Returns:
        ``y`` shaped as ``x``, and ``rstd [...]``, the factor of each row, in float32 (float64 for float64).
    """
    kernels = _kernels(x, output_dtype)
    if kernels is not None:
        y, rstd = _unit_length(kernels, x, eps, output_dtype)
        return y, rstd.view(x.shape[:-1])
    wide = x.to(accumulation_dtype(x))
    rstd = _rstd(wide, eps)
    return (wide * rstd).to(output_dtype or x.dtype), rstd.squeeze(-1)


def l2norm_bwd(y: torch.Tensor, rstd: torch.Tensor, dy: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    """Gradient of `l2norm` with respect to its input, from the output: ``rstd * (dy - y * sum(dy * y))``.

    Args:
        y: output of `l2norm_fwd`.
        rstd: its second result.
        dy: gradient, shaped as ``y``.
        eps: accepted for the official signature; ``rstd`` already holds it.

    Returns:
        The gradient in the dtype of ``y``.
    """
    kind = accumulation_dtype(y, dy)
    wide, dy, rstd = y.to(kind), dy.to(kind), rstd.to(kind).unsqueeze(-1)
    along = (dy * wide).sum(-1, keepdim=True)
    return (dy - wide * along).mul_(rstd).to(y.dtype)


def l2norm(x: torch.Tensor, eps: float = 1e-6, output_dtype: Optional[torch.dtype] = None) -> torch.Tensor:
    """Scale the last axis to length one: ``y = x * rsqrt(sum(x^2) + eps)``.

    Not ``torch.nn.functional.normalize``: ``eps`` is added to the squared length, so a zero vector stays zero and
    its gradient is finite. Sums are float32, or float64 for float64 input.

    Args:
        x: ``[..., D]``, any floating type.
        eps: added to the sum of squares.
        output_dtype: dtype of the result; that of ``x`` if not given.

    Returns:
        ``[..., D]``.

    Example:
        >>> l2norm(torch.tensor([[3.0, 4.0]])).round(decimals=3)
        tensor([[0.6000, 0.8000]])
    """
    check_tensor("l2norm", "x", x)
    if x.dim() < 1 or not x.is_floating_point():
        raise value_error("l2norm", "x", "must be a floating tensor [..., D]", f"{x.dtype} {tuple(x.shape)}")
    if tracing():
        return _formula(x, eps, output_dtype or x.dtype)
    if not (torch.is_grad_enabled() and x.requires_grad):
        kernels = _kernels(x, output_dtype)
        if kernels is not None:
            return _unit_length(kernels, x, eps, output_dtype)[0]
        kind = accumulation_dtype(x)
        wide = x if x.dtype is kind else x.to(kind)
        y, kind = wide * _rstd(wide, eps), output_dtype or x.dtype
        return y if y.dtype is kind else y.to(kind)
    return _L2Norm.apply(x, eps, output_dtype)


def l2norm_(x: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
    """`l2norm` in place, without autograd and checks. ``eps`` is ``[]``, in x's dtype.

    Example:
        >>> l2norm_(torch.zeros(1, 2), torch.tensor(1e-6))
        tensor([[0., 0.]])
    """
    if x.device.type != "cpu":  # `addcmul` of other devices takes no number of the CPU's
        return x.mul_(_rstd(x, eps))
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x.mul_(torch.addcmul(eps, length, length).rsqrt_())


def _rstd(x: torch.Tensor, eps: Union[float, torch.Tensor]) -> torch.Tensor:
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return length.mul_(length).add_(eps).rsqrt_()


def _kernels(x: torch.Tensor, output_dtype: Optional[torch.dtype]) -> Any:
    """The compiled kernels if they can compute this, else None."""
    return native(x) if x.numel() and output_dtype is not torch.float64 else None


def _unit_length(
    kernels: Any, x: torch.Tensor, eps: float, output_dtype: Optional[torch.dtype]
) -> Tuple[torch.Tensor, torch.Tensor]:
    """y shaped as x, and rstd ``[rows, 1]``."""
    dtype = output_dtype or x.dtype
    y, _, rstd = kernels.norm_forward(x, None, None, None, eps, 1, False, None, dtype, unit_length=True)
    return y, rstd


class _L2Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, eps: float, output_dtype: Optional[torch.dtype]) -> torch.Tensor:
        ctx.eps, ctx.output_dtype, ctx.kernels = eps, output_dtype or x.dtype, _kernels(x, output_dtype)
        if ctx.kernels is not None:
            y, rstd = _unit_length(ctx.kernels, x, eps, output_dtype)
            ctx.save_for_backward(x, rstd)
            return y
        wide = x.to(accumulation_dtype(x))
        rstd = _rstd(wide, eps)
        ctx.save_for_backward(x, rstd)
        return (wide * rstd).to(ctx.output_dtype)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> Any:
        x, rstd = ctx.saved_tensors
        if torch.is_grad_enabled():
            return (*backward_through(lambda t: _formula(t, ctx.eps, ctx.output_dtype), [x], [True], [dy]), None, None)
        if ctx.kernels is not None:
            dx, _, _ = ctx.kernels.norm_backward(
                dy, x, None, None, None, None, rstd, None, dparameters=False, unit_length=True)
            return dx, None, None
        wide, dy = x.to(rstd.dtype), dy.to(rstd.dtype)
        # One factor at a time: the cube of rstd alone overflows for short vectors and underflows for long ones.
        along = (dy * wide).sum(-1, keepdim=True).mul_(rstd).mul_(rstd).mul_(rstd)
        return (dy * rstd).addcmul_(wide, along, value=-1).to(x.dtype), None, None


def _formula(x: torch.Tensor, eps: float, output_dtype: torch.dtype) -> torch.Tensor:
    wide = x.to(accumulation_dtype(x))
    return (wide * (wide.square().sum(-1, keepdim=True) + eps).rsqrt()).to(output_dtype)

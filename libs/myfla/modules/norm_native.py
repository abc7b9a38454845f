"""Norms by the compiled CPU kernels (`myfla.utils.native`), under autograd."""

import functools
from typing import Any, Callable, Optional

import torch

from myfla.utils.autograd import backward_through, records

__all__ = ["norm_native"]


def norm_native(
    kernels: Any, h: torch.Tensor, g: Optional[torch.Tensor], weight: Optional[torch.Tensor],
    bias: Optional[torch.Tensor], settings: Any, formula: Callable[..., torch.Tensor],
) -> torch.Tensor:
    """The norm that `myfla.modules.norm_core` describes, for checked arguments.

    Args:
        kernels: the package with the kernels, which supports all these tensors.
        h: ``[..., D]``, not empty.
        g: shaped as h, or None.
        weight, bias: ``[D]`` or None.
        settings: of `myfla.modules.norm_core`.
        formula: the same in plain operations, for second derivatives.

    Returns:
        ``[..., D]`` in the dtype of the settings.
    """
    if records(h, g, weight, bias):
        return _Norm.apply(kernels, h, g, weight, bias, settings, formula)
    return _forward(kernels, h, g, weight, bias, settings, keep=False)[0]


def _forward(
    kernels: Any, h: torch.Tensor, g: Optional[torch.Tensor], weight: Optional[torch.Tensor],
    bias: Optional[torch.Tensor], settings: Any, keep: bool,
) -> Any:  # fmt: skip
    eps, centred, groups, activation, dtype = settings
    return kernels.norm_forward(h, g, weight, bias, eps, groups, centred, activation, dtype, keep=keep)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, kernels: Any, h: torch.Tensor, g: Optional[torch.Tensor], weight: Optional[torch.Tensor],
        bias: Optional[torch.Tensor], settings: Any, formula: Callable[..., torch.Tensor],
    ) -> torch.Tensor:  # fmt: skip
        y, mean, rstd = _forward(kernels, h, g, weight, bias, settings, keep=True)
        ctx.save_for_backward(h, g, weight, bias, mean, rstd)
        ctx.kernels, ctx.settings, ctx.formula = kernels, settings, formula
        return y

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> Any:
        h, g, weight, bias, mean, rstd = ctx.saved_tensors
        needs = ctx.needs_input_grad[1:5]
        if torch.is_grad_enabled():
            plain = functools.partial(ctx.formula, settings=ctx.settings)
            return (None, *backward_through(plain, [h, g, weight, bias], needs, [dy]), None, None)
        dh, dg, found = ctx.kernels.norm_backward(
            dy, h, g, weight, bias, mean, rstd, ctx.settings.activation, needs[0], needs[1], needs[2] or needs[3])
        dweight = found[0].to(weight.dtype) if needs[2] else None
        return None, dh, dg, dweight, found[1].to(bias.dtype) if needs[3] else None, None, None

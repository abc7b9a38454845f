"""Every norm of the library in one autograd function: root-mean-square or centred, in groups, with an output gate.

    n = (h - mean) * rstd * weight + bias          mean is 0 for the root-mean-square norms
    y = n * act(g)                                 with a gate: silu(g) or sigmoid(g)

`h [..., D]` is split into G groups of d = D / G channels, each with its own mean and
`rstd = 1 / sqrt(mean(h^2) + eps)`. Sums are float32 (float64 where an argument is float64), rounded once at the end.
"""

import functools
from typing import Any, NamedTuple, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F

from myfla.modules.blocks import blocks
from myfla.modules.norm_native import norm_native
from myfla.utils.autograd import backward_through, records
from myfla.utils.dtypes import accumulation_dtype
from myfla.utils.errors import value_error
from myfla.utils.native import native
from myfla.utils.tensors import check_tensor
from myfla.utils.tracing import tracing

Result = Union[torch.Tensor, Tuple[torch.Tensor, torch.Tensor]]

GATES = ("swish", "silu", "sigmoid")


class Settings(NamedTuple):
    """The arguments that are not tensors. ``dtype`` is the dtype of the result."""

    eps: float
    centred: bool
    groups: int
    activation: Optional[str]
    dtype: torch.dtype


def normalise(
    who: str, x: torch.Tensor, weight: Optional[torch.Tensor], bias: Optional[torch.Tensor],
    residual: Optional[torch.Tensor], eps: float, prenorm: bool, residual_in_fp32: bool, centred: bool,
    groups: int = 1, gate: Optional[torch.Tensor] = None, activation: Optional[str] = None,
) -> Result:
    """Add the residual, normalise, and apply the gate: the common function of all norms of this package.

    Returns:
        y with the shape and dtype of x; with ``prenorm`` also ``x + residual``, in the dtype of
        the residual (of x without one; float32 then, if ``residual_in_fp32`` and x is of half precision).
    """
    _check(who, x, weight, bias, residual, groups, gate, activation)
    total, carried = _add(x, residual, residual_in_fp32)
    settings = Settings(eps, centred, groups, activation, x.dtype)
    gate = None if gate is None else gate.reshape(x.shape)
    kernels = native(total, gate, weight, bias)
    if gate is None and centred and groups == 1 and _one_format(x.dtype, total, weight, bias):
        y = F.layer_norm(total, total.shape[-1:], weight, bias, eps)  # PyTorch's operation is one pass over memory
    elif kernels is not None and total.numel():
        y = norm_native(kernels, total, gate, weight, bias, settings, _formula)
    elif tracing():
        y = _formula(total, gate, weight, bias, settings)
    elif records(total, gate, weight, bias):
        y = _Normalise.apply(total, gate, weight, bias, settings)
    else:  # without autograd's bookkeeping, which costs more than the arithmetic of one token
        y = _forward(total, gate, weight, bias, settings)[0]
    return (y, carried) if prenorm else y


def _add(
    x: torch.Tensor, residual: Optional[torch.Tensor], residual_in_fp32: bool
) -> Tuple[torch.Tensor, torch.Tensor]:
    """The sum that is normalised, and the one that is returned as the next residual."""
    if residual is not None:
        kind = accumulation_dtype(x, residual)
        total = x.to(kind) + residual.to(kind)
        return total, total.to(residual.dtype)
    return x, x.to(accumulation_dtype(x)) if residual_in_fp32 else x


def _one_format(kind: torch.dtype, *tensors: Optional[torch.Tensor]) -> bool:
    return kind in (torch.float32, torch.float64) and all(t is None or t.dtype == kind for t in tensors)


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, h: torch.Tensor, g: Optional[torch.Tensor], weight: Optional[torch.Tensor],
        bias: Optional[torch.Tensor], settings: Settings,
    ) -> torch.Tensor:  # fmt: skip
        y, mean, rstd, gate = _forward(h, g, weight, bias, settings)
        ctx.save_for_backward(h, g, weight, bias, mean, rstd, gate)
        ctx.settings = settings
        return y

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> Any:
        h, g, weight, bias, mean, rstd, gate = ctx.saved_tensors
        settings, needs = ctx.settings, ctx.needs_input_grad
        if torch.is_grad_enabled():
            formula = functools.partial(_formula, settings=settings)
            return (*backward_through(formula, [h, g, weight, bias], needs[:4], [dy]), None)
        return (*_backward(dy, h, g, weight, bias, (mean, rstd, gate), settings, needs), None)


def _backward(
    dy: torch.Tensor, h: torch.Tensor, g: Optional[torch.Tensor], weight: Optional[torch.Tensor],
    bias: Optional[torch.Tensor], kept: Sequence[Any], settings: Settings, needs: Sequence[bool],
) -> Tuple[Optional[torch.Tensor], ...]:  # fmt: skip
    """Gradients of h, g, weight and bias, some rows at a time."""
    D, kind = h.shape[-1], kept[1].dtype
    found = (
        torch.empty_like(h, memory_format=torch.contiguous_format) if needs[0] else None,
        torch.empty_like(g, memory_format=torch.contiguous_format) if g is not None and needs[1] else None,
        *(None if p is None or not need else p.new_zeros(D, dtype=kind) for p, need in zip((weight, bias), needs[2:])),
    )  # fmt: skip
    w, b = (None if p is None else _parameter(p, kind, settings.groups) for p in (weight, bias))
    flat = [None if t is None else t.reshape(-1, D) for t in (dy, h, g, *found[:2])]
    own = 1 if settings.groups == 1 else 2  # axes of one row
    kept = [None if t is None else t.reshape(-1, *t.shape[-own:]) for t in kept]
    for _, start, end in blocks(1, h.numel() // max(D, 1), 4 * D, h.device):  # several operands at once
        part = [None if t is None else t[start:end] for t in flat]
        more = [None if t is None else t[start:end] for t in kept]
        _backward_rows(part, more, w, b, found[2], found[3], settings)
    dweight, dbias = (None if d is None or p is None else d.to(p.dtype) for d, p in zip(found[2:], (weight, bias)))
    return found[0], found[1], dweight, dbias


def _backward_rows(
    rows: Sequence[Any], kept: Sequence[Any], w: Optional[torch.Tensor], b: Optional[torch.Tensor],
    dweight: Optional[torch.Tensor], dbias: Optional[torch.Tensor], settings: Settings,
) -> None:  # fmt: skip
    """Rows ``[n, D]``: fills their part of the gradients of h and g, and adds to those of weight and bias."""
    dy, h, g, dh, dg = rows
    mean, rstd, gate = kept
    kind, groups = rstd.dtype, settings.groups
    dy, h = _split(dy.to(kind), groups), _split(h.to(kind), groups)
    unit = h * rstd if mean is None else (h - mean).mul_(rstd)
    if dg is not None:
        dg.copy_(_backward_gate(dy, unit, w, b, g, gate, settings))
    dnorm = dy if gate is None else dy * gate
    # One buffer for the terms of the sum over tokens, then of that over channels, then for the gradient.
    along = dnorm * unit
    if dweight is not None:
        dweight += along.view(-1, dweight.shape[0]).sum(0)
    if dbias is not None:
        dbias += dnorm.reshape(-1, dbias.shape[0]).sum(0)
    if dh is None:
        return
    share = (along if w is None else along.mul_(w)).sum(-1, keepdim=True)
    along = along.copy_(dnorm) if w is None else torch.mul(dnorm, w, out=along)
    if mean is not None:
        along.sub_(along.mean(-1, keepdim=True))
    torch.mul(along.addcmul_(unit, share, value=-1 / along.shape[-1]), rstd, out=along)
    dh.copy_(along.view(dh.shape))


def _split(rows: torch.Tensor, groups: int) -> torch.Tensor:
    """``[..., D]`` as ``[..., G, d]`` if there are groups."""
    return rows if groups == 1 else rows.reshape((*rows.shape[:-1], groups, rows.shape[-1] // groups))


def _parameter(parameter: torch.Tensor, kind: torch.dtype, groups: int) -> torch.Tensor:
    return _split(parameter.to(kind), groups)


def _forward(
    h: torch.Tensor, g: Optional[torch.Tensor], weight: Optional[torch.Tensor], bias: Optional[torch.Tensor],
    settings: Settings,
) -> Tuple[torch.Tensor, Any, torch.Tensor, Any]:  # fmt: skip
    """y, and for the backward pass the mean, rstd and the activated gate."""
    kind, groups = accumulation_dtype(h, g, weight, bias), settings.groups
    rows, mean, gate = _split(h.to(kind), groups), None, None
    if settings.centred:
        mean = rows.mean(-1, keepdim=True)
        rows = rows - mean
    rstd = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    rstd.mul_(rstd).div_(rows.shape[-1]).add_(settings.eps).rsqrt_()
    y = rows * rstd
    if weight is not None:
        y.mul_(_parameter(weight, kind, groups))
    if bias is not None:
        y.add_(_parameter(bias, kind, groups))
    if g is not None:
        gate = _split(_activate(g.to(kind), settings.activation), groups)
        y.mul_(gate)
    return y.view(h.shape).to(settings.dtype), mean, rstd, gate


def _activate(g: torch.Tensor, activation: Optional[str]) -> torch.Tensor:
    return torch.sigmoid(g) if activation == "sigmoid" else F.silu(g)


def _backward_gate(
    dy: torch.Tensor, unit: torch.Tensor, w: Optional[torch.Tensor], b: Optional[torch.Tensor], g: torch.Tensor,
    gate: torch.Tensor, settings: Settings,
) -> torch.Tensor:  # fmt: skip
    """Gradient of g; ``gate`` is its activation, ``unit`` the rows of unit size before weight and bias."""
    into = dy * unit
    if w is not None:
        into.mul_(w)
    if b is not None:
        into.addcmul_(dy, b)
    into = into.view(g.shape)
    if settings.activation == "sigmoid":
        return torch.ops.aten.sigmoid_backward(into, gate.reshape(g.shape))
    return torch.ops.aten.silu_backward(into, g.to(into.dtype))


def _formula(
    h: torch.Tensor, g: Optional[torch.Tensor], weight: Optional[torch.Tensor], bias: Optional[torch.Tensor],
    settings: Settings,
) -> torch.Tensor:  # fmt: skip
    """`_forward` in plain operations, for second derivatives."""
    kind, groups = accumulation_dtype(h, g, weight, bias), settings.groups
    rows = _split(h.to(kind), groups)
    if settings.centred:
        rows = rows - rows.mean(-1, keepdim=True)
    y = rows * (rows.square().mean(-1, keepdim=True) + settings.eps).rsqrt()
    y = y if weight is None else y * _parameter(weight, kind, groups)
    y = (y if bias is None else y + _parameter(bias, kind, groups)).reshape(h.shape)
    return (y if g is None else y * _activate(g.to(kind), settings.activation)).to(settings.dtype)


def _check(
    who: str, x: torch.Tensor, weight: Optional[torch.Tensor], bias: Optional[torch.Tensor],
    residual: Optional[torch.Tensor], groups: int, gate: Optional[torch.Tensor], activation: Optional[str],
) -> None:
    check_tensor(who, "x", x)
    if x.dim() < 1 or not x.is_floating_point():
        raise value_error(who, "x", "must be a floating tensor [..., D]", f"{x.dtype} {tuple(x.shape)}")
    D = x.shape[-1]
    check_groups(who, groups, D)
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is not None:
            check_tensor(who, name, parameter, x)
        if parameter is not None and tuple(parameter.shape) != (D,):
            raise value_error(who, name, f"must have shape ({D},), the last axis of x", tuple(parameter.shape))
    if residual is not None:
        check_tensor(who, "residual", residual, x)
    if residual is not None and residual.shape != x.shape:
        raise value_error(who, "residual", f"must have the shape of x, {tuple(x.shape)}", tuple(residual.shape))
    if gate is not None:
        check_activation(who, activation)
        check_tensor(who, "g", gate, x)
        if gate.shape[-1:] != x.shape[-1:] or gate.numel() != x.numel():
            raise value_error(who, "g", f"must have the rows of x, {tuple(x.shape)}", tuple(gate.shape))


def check_groups(who: str, groups: int, size: int) -> None:
    """Refuse a number of groups that does not divide the channels."""
    if groups < 1 or size % groups:
        raise value_error(who, "num_groups", f"must divide the number of channels, {size}", groups)


def check_activation(who: str, activation: Optional[str]) -> None:
    """Refuse an unknown gate."""
    if activation not in GATES:
        raise value_error(who, "activation", f"must be one of {list(GATES)}", activation)

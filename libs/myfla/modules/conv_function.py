"""The short convolution as one autograd function: taps, activation and residual in float32, rounded once."""

import functools
from typing import Any, Optional, Tuple

import torch
import torch.nn.functional as F

from myfla.modules.conv_taps import Heads, Needs, backward, convolve
from myfla.utils.autograd import backward_through, records
from myfla.utils.dtypes import accumulation_dtype
from myfla.utils.tracing import tracing


def conv_rows(
    x: torch.Tensor, weight: torch.Tensor, bias: Optional[torch.Tensor], residual: Optional[torch.Tensor],
    state: Optional[torch.Tensor], activation: Optional[str], heads: Optional[Heads],
) -> torch.Tensor:
    """``act(conv(x) + bias) + residual`` of arguments that were checked.

    Args:
        x: ``[B, T, D]``; packed ``[1, T, D]`` with ``heads``.
        weight: ``[D, W]``.
        bias: ``[D]`` or None.
        residual: shaped as x, or None.
        state: the last inputs of each sequence, ``[N, D, W]``, or None.
        activation: ``"silu"``, ``"swish"`` or None.
        heads: where packed sequences begin, or None.

    Returns:
        ``[B, T, D]`` in the dtype of x.
    """
    if tracing():
        return formula(x, weight, bias, residual, state, activation, heads)
    if records(x, weight, bias, residual, state):
        return CausalConv1dFunction.apply(x, weight, bias, residual, state, activation, heads)
    # Without autograd's bookkeeping, which costs more than the arithmetic of one token.
    return _forward(x, weight, bias, residual, state, activation, heads, keep=False)[0]


class CausalConv1dFunction(torch.autograd.Function):
    """`conv_rows` under autograd."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: Optional[torch.Tensor],
        residual: Optional[torch.Tensor], state: Optional[torch.Tensor], activation: Optional[str],
        heads: Optional[Heads],
    ) -> torch.Tensor:  # fmt: skip
        y, z = _forward(x, weight, bias, residual, state, activation, heads, keep=True)
        ctx.save_for_backward(x, weight, bias, residual, state, z)
        ctx.activation, ctx.heads = activation, heads
        return y

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> Any:
        x, weight, bias, residual, state, z = ctx.saved_tensors
        needs = ctx.needs_input_grad[:5]
        if torch.is_grad_enabled():
            plain = functools.partial(formula, activation=ctx.activation, heads=ctx.heads)
            return (*backward_through(plain, [x, weight, bias, residual, state], needs, [dy]), None, None)
        kind = accumulation_dtype(x, weight, bias, residual, state)
        wanted = Needs(needs[0], needs[1], needs[2], needs[4])
        found = backward(dy.to(kind), z, *_widen(x, weight, state, kind), heads=ctx.heads, needs=wanted)
        return (
            None if found.x is None else found.x.to(x.dtype),
            None if found.taps is None else found.taps.t().to(weight.dtype),
            None if found.bias is None else found.bias.to(bias.dtype),
            dy.to(residual.dtype) if needs[3] else None,
            # Slot 0 of a state lies before the reach of any tap.
            None if found.history is None else F.pad(found.history.transpose(1, 2), (1, 0)).to(state.dtype),
            None,
            None,
        )


def _widen(
    x: torch.Tensor, weight: torch.Tensor, state: Optional[torch.Tensor], kind: torch.dtype
) -> Tuple[torch.Tensor, torch.Tensor, Optional[torch.Tensor]]:
    wide = x.to(kind)
    if wide.stride(-1) != 1:
        wide = wide.contiguous()
    return wide, weight.to(kind).t().contiguous(), _history(state, kind)


def _history(state: Optional[torch.Tensor], kind: torch.dtype) -> Optional[torch.Tensor]:
    return None if state is None else state[:, :, 1:].transpose(1, 2).to(kind)


def _forward(
    x: torch.Tensor, weight: torch.Tensor, bias: Optional[torch.Tensor], residual: Optional[torch.Tensor],
    state: Optional[torch.Tensor], activation: Optional[str], heads: Optional[Heads], keep: bool,
) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:  # fmt: skip
    """The result, and the input of the activation if it is to be kept."""
    kind = accumulation_dtype(x, weight, bias, residual, state)
    wide, taps, history = _widen(x, weight, state, kind)
    z = convolve(wide, taps, None if bias is None else bias.to(kind), history, heads)
    keep = keep and activation is not None
    y = F.silu(z, inplace=not keep) if activation else z
    if residual is not None:
        y.add_(residual)
    return y.to(x.dtype), z if keep else None


def formula(
    x: torch.Tensor, weight: torch.Tensor, bias: Optional[torch.Tensor], residual: Optional[torch.Tensor],
    state: Optional[torch.Tensor], activation: Optional[str], heads: Optional[Heads],
) -> torch.Tensor:  # fmt: skip
    """`_forward` in plain operations, for second derivatives and recorded graphs (`myfla.utils.tracing`)."""
    kind = accumulation_dtype(x, weight, bias, residual, state)
    rows, past = x.to(kind), _history(state, kind)
    z = _windows(rows, weight.to(kind), past if heads is None else None)
    if heads is not None:
        grid = rows[0][heads.grid].view(-1, weight.shape[1] - 1, rows.shape[2])
        own = _windows(grid, weight.to(kind), past).flatten(0, 1)
        own = own if heads.keep is None else own[heads.keep]
        z = z.index_copy(1, heads.rows, own.unsqueeze(0))
    z = z if bias is None else z + bias
    y = F.silu(z) if activation else z
    return (y if residual is None else y + residual).to(x.dtype)


def _windows(x: torch.Tensor, weight: torch.Tensor, past: Optional[torch.Tensor]) -> torch.Tensor:
    width = weight.shape[1]
    past = x.new_zeros(x.shape[0], width - 1, x.shape[2]) if past is None else past
    rows, T = torch.cat([past, x], 1), x.shape[1]
    z = rows[:, width - 1 : width - 1 + T] * weight[:, -1]
    for s in range(1, width):
        z = z + rows[:, width - 1 - s : width - 1 - s + T] * weight[:, -1 - s]
    return z

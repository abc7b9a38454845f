"""The short convolution as one autograd function: taps, activation and residual in float32, rounded once."""

from typing import Optional, Tuple

import torch
import torch.nn.functional as F

from myfla.modules.conv_taps import Spread, backward, convolve, draw_apart
from myfla.utils.autograd import backward_through, records
from myfla.utils.dtypes import accumulation_dtype


def conv_rows(
    x: torch.Tensor, weight: torch.Tensor, bias: Optional[torch.Tensor], residual: Optional[torch.Tensor],
    state: Optional[torch.Tensor], activation: Optional[str], spread: Optional[Spread],
) -> torch.Tensor:
    """``act(conv(x) + bias) + residual`` of arguments that were checked.

    Args:
        x: ``[B, T, D]``; packed ``[1, T, D]`` with ``spread``.
        weight: ``[D, W]``.
        bias: ``[D]`` or None.
        residual: shaped as x, or None.
        state: the last inputs of each sequence, ``[N, D, W]``, or None.
        activation: ``"silu"``, ``"swish"`` or None.
        spread: where packed sequences begin, or None.

    Returns:
        ``[B, T, D]`` in the number format of x.
    """
    if records(x, weight, bias, residual, state):
        return CausalConv1dFunction.apply(x, weight, bias, residual, state, activation, spread)
    # Without autograd's bookkeeping, which costs more than the arithmetic of one token.
    return _forward(x, weight, bias, residual, state, activation, spread, keep=False)[0]


class CausalConv1dFunction(torch.autograd.Function):
    """`conv_rows` under autograd."""

    @staticmethod
    def forward(ctx, x, weight, bias, residual, state, activation, spread):
        y, z = _forward(x, weight, bias, residual, state, activation, spread, keep=True)
        ctx.save_for_backward(x, weight, bias, residual, state, z)
        ctx.activation, ctx.spread = activation, spread
        return y

    @staticmethod
    def backward(ctx, dy):
        x, weight, bias, residual, state, z = ctx.saved_tensors
        needs = ctx.needs_input_grad[:5]
        if torch.is_grad_enabled():
            inputs, settings = [x, weight, bias, residual, state], (ctx.activation, ctx.spread)
            return backward_through(lambda *tensors: _formula(*tensors, *settings), inputs, needs, [dy]) + (None, None)
        kind = accumulation_dtype(x, weight, bias, residual, state)
        dz = dy.to(kind)
        if ctx.activation:
            dz = torch.ops.aten.silu_backward(dz, z)
        dz = dz.contiguous()
        dx, dtaps, dhistory = backward(
            dz, *_widen(x, weight, state, kind), spread=ctx.spread, needs=(needs[0], needs[1], needs[4]))
        return (
            dx.to(x.dtype) if needs[0] else None,
            dtaps.t().to(weight.dtype) if needs[1] else None,
            dz.sum((0, 1)).to(bias.dtype) if needs[2] else None,
            dy.to(residual.dtype) if needs[3] else None,
            # Slot 0 of a state lies before the reach of any tap.
            F.pad(dhistory.transpose(1, 2), (1, 0)).to(state.dtype) if needs[4] else None,
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


def _forward(x, weight, bias, residual, state, activation, spread, keep):
    """The result, and the input of the activation if it is to be kept."""
    kind = accumulation_dtype(x, weight, bias, residual, state)
    wide, taps, history = _widen(x, weight, state, kind)
    z = convolve(wide, taps, None if bias is None else bias.to(kind), history, spread)
    keep = keep and activation is not None
    y = F.silu(z, inplace=not keep) if activation else z
    if residual is not None:
        y.add_(residual)
    return y.to(x.dtype), z if keep else None


def _formula(x, weight, bias, residual, state, activation, spread):
    """`_forward` in plain operations, for second derivatives."""
    kind = accumulation_dtype(x, weight, bias, residual, state)
    rows, past = x.to(kind), _history(state, kind)
    if spread is not None:
        rows, past = draw_apart(rows, spread, past), None
    if past is None:
        past = rows.new_zeros(rows.shape[0], weight.shape[1] - 1, rows.shape[2])
    z = (torch.cat([past, rows], 1).unfold(1, weight.shape[1], 1) * weight.to(kind)).sum(-1)
    if spread is not None:
        z = z.index_select(1, spread.place)
    z = z if bias is None else z + bias
    y = F.silu(z) if activation else z
    return (y if residual is None else y + residual).to(x.dtype)

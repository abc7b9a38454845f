"""From RWKV-7's projections to the arguments of its recurrence, in one node of the graph and few passes over memory."""

from typing import Any, List, Optional, Sequence, Tuple, cast

import torch

from myfla.ops.rwkv7.fused_addcmul import row_blocks
from myfla.utils.autograd import backward_through
from myfla.utils.dtypes import accumulation_dtype
from myfla.utils.tracing import tracing

__all__ = ["STRONGEST_DECAY", "key_gates"]

STRONGEST_DECAY = -0.6065306597126334
"""``-exp(-0.5)``, the log decay of one step at its strongest."""

SHORTEST = 1e-12

Four = Tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def key_gates(
    k: torch.Tensor,
    w: torch.Tensor,
    a: torch.Tensor,
    k_k: torch.Tensor,
    k_a: torch.Tensor,
    head_dim: int,
    eps: Optional[float],
) -> Four:
    """Log decay, written key and removal vectors (RWKV-7, arXiv 2503.14456).

    With ``a <- sigmoid(a)`` and, per head, ``kk = k k_k / |k k_k|``::

        log decay = -exp(-0.5) sigmoid(w),   key = k (1 + (a - 1) k_a),   remove = -kk,   replace = kk a

    Computed in float32 (float64 for float64 input) and rounded once.

    Args:
        k: ``[B, T, H * K]`` projected keys.
        w, a: ``[B, T, H * K]``, before their sigmoids.
        k_k, k_a: ``[H * K]``.
        head_dim: K.
        eps: added to the squared length of kk; None for ``torch.nn.functional.normalize``'s way, where lengths below
            1e-12 count as 1e-12. There such a key gets no gradient through kk; the exact one would be 1e12 times too
            large.

    Returns:
        ``(log decay, key, remove, replace)``, each ``[B, T, H, K]`` in k's dtype: `chunk_rwkv7`'s w, k, a and b.

    Example:
        >>> k, zero = torch.tensor([[[3.0, 4.0]]]), torch.zeros(1, 1, 2)
        >>> w, key, remove, replace = key_gates(k, zero, zero, torch.ones(2), torch.ones(2), 2, None)
        >>> key.flatten().tolist(), [round(x, 4) for x in (*remove.flatten().tolist(), *replace.flatten().tolist())]
        ([1.5, 2.0], [-0.6, -0.8, 0.3, 0.4])
    """
    if tracing():
        return cast(Four, _formula(k, w, a, k_k, k_a, head_dim, eps))
    if torch.is_grad_enabled():
        return _KeyGatesFunction.apply(k, w, a, k_k, k_a, head_dim, eps)
    return cast(Four, tuple(_forward(k, w, a, k_k, k_a, head_dim, eps)[:4]))


def _formula(
    k: torch.Tensor, w: torch.Tensor, a: torch.Tensor, k_k: torch.Tensor, k_a: torch.Tensor, head_dim: int,
    eps: Optional[float],
) -> Tuple[torch.Tensor, ...]:  # fmt: skip
    """The four results in plain operations, for recorded graphs (`myfla.utils.tracing`)."""
    dtype = accumulation_dtype(k)
    heads = (*k.shape[:-1], k.shape[-1] // head_dim, head_dim)
    wide, decay, rate = k.to(dtype), torch.sigmoid(w.to(dtype)) * STRONGEST_DECAY, torch.sigmoid(a.to(dtype))
    unit, rates = (wide * k_k.to(dtype)).view(heads), rate.view(heads)
    square = unit.square().sum(-1, keepdim=True)
    if eps is None:
        short = square <= SHORTEST**2
        length = torch.where(short, torch.ones_like(square), square).rsqrt()
        unit = torch.where(short, (unit / SHORTEST).detach(), unit * length)
    else:
        unit = unit * (square + eps).rsqrt()
    key = wide * (1 + (rate - 1) * k_a.to(dtype))
    return tuple(x.to(k.dtype) for x in (decay.view(heads), key.view(heads), -unit, unit * rates))


def _forward(
    k: torch.Tensor, w: torch.Tensor, a: torch.Tensor, k_k: torch.Tensor, k_a: torch.Tensor, head_dim: int,
    eps: Optional[float],
) -> List[torch.Tensor]:  # fmt: skip
    """The four results, and one over the length of each key."""
    dtype, width = accumulation_dtype(k), k.shape[-1]
    heads = (*k.shape[:-1], width // head_dim, head_dim)
    rows = [x.reshape(-1, width) for x in (k, w, a)]
    scale, mix, blocks = k_k.to(dtype), k_a.to(dtype), list(row_blocks(*rows[0].shape))
    if len(blocks) == 1:
        plain, gate, rate = (x.to(dtype) for x in rows)
        *outputs, inverse = _block(plain, gate, rate, scale, mix, head_dim, eps)
        return [x.to(k.dtype).view(heads) for x in outputs] + [inverse]
    outputs = [torch.empty_like(rows[0]) for _ in range(4)]
    inverse = k.new_empty((rows[0].shape[0], width // head_dim, 1), dtype=dtype)
    for at in blocks:
        plain, gate, rate = (x[at].to(dtype) for x in rows)
        for target, found in zip((*outputs, inverse), _block(plain, gate, rate, scale, mix, head_dim, eps)):
            target[at] = found
    return [x.view(heads) for x in outputs] + [inverse]


def _block(
    plain: torch.Tensor, gate: torch.Tensor, rate: torch.Tensor, scale: torch.Tensor, mix: torch.Tensor,
    head_dim: int, eps: Optional[float],
) -> Tuple[torch.Tensor, ...]:  # fmt: skip
    """`_forward` of some rows ``[n, D]``."""
    decay, rate = torch.sigmoid(gate).mul_(STRONGEST_DECAY), torch.sigmoid(rate)
    unit = (plain * scale).view(plain.shape[0], -1, head_dim)
    inverse = _inverse_length(unit, eps)
    unit = unit.mul_(inverse).view(plain.shape)
    replace = unit * rate
    return decay, rate.sub_(1).mul_(mix).add_(1).mul_(plain), unit.neg_(), replace, inverse


class _KeyGatesFunction(torch.autograd.Function):
    """Both directions go through blocks of rows that stay in the processor's cache."""

    @staticmethod
    def forward(
        ctx: Any, k: torch.Tensor, w: torch.Tensor, a: torch.Tensor, k_k: torch.Tensor, k_a: torch.Tensor,
        head_dim: int, eps: Optional[float],
    ) -> Tuple[torch.Tensor, ...]:  # fmt: skip
        decay, key, remove, replace, inverse = _forward(k, w, a, k_k, k_a, head_dim, eps)
        ctx.save_for_backward(k, a, k_k, k_a, inverse, decay, remove)
        ctx.eps, ctx.w_dtype = eps, w.dtype
        return decay, key, remove, replace

    @staticmethod
    def backward(
        ctx: Any, d_decay: torch.Tensor, d_key: torch.Tensor, d_remove: torch.Tensor, d_replace: torch.Tensor
    ) -> Any:
        k, a, k_k, k_a, inverse, decay, remove = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _again(ctx, k, a, k_k, k_a, decay, (d_decay, d_key, d_remove, d_replace))
        dtype, (heads, head), width = inverse.dtype, remove.shape[-2:], k.shape[-1]
        dk, da, dw = torch.empty_like(k), torch.empty_like(a), torch.empty_like(k, dtype=ctx.w_dtype)
        flat = [x.reshape(-1, width) for x in (k, a, decay, remove, d_decay, d_key, d_remove, d_replace)]
        out_k, out_a, out_w = (x.view(-1, width) for x in (dk, da, dw))
        scale, mix, lengths = k_k.to(dtype), k_a.to(dtype), inverse
        d_scale, d_mix = torch.zeros_like(scale), torch.zeros_like(mix)
        for at in row_blocks(*flat[0].shape):
            plain, rate, decay, unit, to_decay, to_key, to_remove, to_replace = (x[at].to(dtype) for x in flat)
            out_w[at] = torch.addcmul(decay, decay, decay, value=-1 / STRONGEST_DECAY).mul_(to_decay)
            rate, unit = torch.sigmoid(rate), -unit
            less = rate - 1
            own = to_key * plain
            d_mix += (own * less).sum(0)
            to_rate = own.mul_(mix).addcmul_(to_replace, unit)
            out_a[at] = to_rate.mul_(rate).mul_(less).neg_()
            to_unit = torch.addcmul(to_remove, to_replace, rate, value=-1).neg_().view(-1, heads, head)
            unit = unit.view(-1, heads, head)
            along = (to_unit * unit).sum(-1, keepdim=True)
            to_scaled = to_unit.addcmul_(unit, along, value=-1).mul_(_gradient_factor(lengths[at], ctx.eps))
            to_scaled = to_scaled.view(-1, width)
            d_scale += (to_scaled * plain).sum(0)
            out_k[at] = less.mul_(mix).add_(1).mul_(to_key).addcmul_(to_scaled, scale)
        return dk, dw, da, d_scale.to(k_k.dtype), d_mix.to(k_a.dtype), None, None


def _again(
    ctx: Any, k: torch.Tensor, a: torch.Tensor, k_k: torch.Tensor, k_a: torch.Tensor, decay: torch.Tensor,
    grads: Sequence[torch.Tensor],
) -> Tuple[Optional[torch.Tensor], ...]:  # fmt: skip
    """The gradients as autograd can record them; w is not kept, but its one result, the decay, is."""
    wide = decay.to(accumulation_dtype(k))
    dw = grads[0].to(wide.dtype) * (wide - wide * wide / STRONGEST_DECAY)

    def others(k: torch.Tensor, a: torch.Tensor, k_k: torch.Tensor, k_a: torch.Tensor) -> Tuple[torch.Tensor, ...]:
        return _formula(k, torch.zeros_like(k), a, k_k, k_a, decay.shape[-1], ctx.eps)[1:]

    needs = [ctx.needs_input_grad[i] for i in (0, 2, 3, 4)]
    dk, da, d_scale, d_mix = backward_through(others, [k, a, k_k, k_a], needs, grads[1:])
    return dk, dw.reshape(k.shape).to(ctx.w_dtype), da, d_scale, d_mix, None, None


def _inverse_length(x: torch.Tensor, eps: Optional[float]) -> torch.Tensor:
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    if eps is None:
        return length.clamp_(min=SHORTEST).reciprocal_()
    return length.mul_(length).add_(eps).rsqrt_()


def _gradient_factor(inverse: torch.Tensor, eps: Optional[float]) -> torch.Tensor:
    """One over the length, or zero where it was too short to have a direction."""
    if eps is not None:
        return inverse
    return torch.where(inverse < 0.5 / SHORTEST, inverse, inverse.new_zeros(()))

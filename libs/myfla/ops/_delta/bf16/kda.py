"""KDA (Kimi Linear): the gated delta rule with a decay for each channel.

In the notation of `channels`: ``a = -k``, which reads after its step, ``b = beta k``, and no second pair.
"""

from typing import List, Optional, Tuple

import torch

from myfla.ops._delta.bf16.channels import (
    ChannelGrads,
    Operands,
    allocate_operands,
    chunk_products,
    decay_grad,
    operand_grads,
    saved_shapes,
    scale_tokens,
    sum_decays,
    token_grads,
)
from myfla.ops._delta.bf16.form import Family, Grads, Plan, Prepared, Shape, Tensors
from myfla.ops._delta.bf16.gated_delta import dot, reciprocal_length
from myfla.ops._delta.bf16.layout import Places
from myfla.ops._delta.bf16.static import mark_static
from myfla.ops._delta.subchunks import SubChunks


def prepare(x: Tensors, plan: Plan) -> Prepared:
    """q, k ``[N, H, K]``, v ``[N, HV, V]``, g ``[N, HV, K]``, beta ``[N, HV, 1]``."""
    q, k, _, g, beta = x
    split, operands = allocate_operands(k, 1, plan)
    c = plan.run(sum_decays)(plan.layout.places, g, split, plan.dtype)
    scale = plan.scale_tensor(k)
    saved = plan.run(load_tokens)(plan.layout.places, q, k, beta, c, scale, plan.l2norm, split, operands)
    return chunk_products(plan, split, c, operands, saved)


def prepare_bwd(x: Tensors, plan: Plan, p: Prepared, grads: Grads) -> Tuple[torch.Tensor, ...]:
    """Gradients of q, k, g and beta, in chunks."""
    k, g, places = x[1], x[3], plan.layout.places
    found, saved = operand_grads(plan, p, grads)
    out_dtype = k.dtype if k.shape[1] == plan.layout.heads else plan.dtype  # heads that share a key are summed first
    dq, dk, dbeta, dc, dc_last = plan.run(combine_grads)(found, plan.scale_tensor(k), plan.l2norm, saved, out_dtype)
    dg = plan.run(decay_grad)(places, dc, dc.cumsum(1), dc_last, grads.h, grads.dh, found.c, g, found.split)
    return dq, dk, dg, dbeta


def load_tokens(
    places: Places, q: torch.Tensor, k: torch.Tensor, beta: torch.Tensor, c: torch.Tensor, scale: torch.Tensor,
    l2norm: bool, split: SubChunks, operands: Operands,
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cut the tokens into chunks and scale them into ``operands``.

    Returns:
        the chunks of q and k as given ``[M, C, K]``, and of beta ``[M, C, 1]``.
    """
    mark_static(places, q, k, beta, c, split, operands)
    heads = beta.shape[1]
    queries, keys, strength = (places.load(x, heads) for x in (q, k, beta))
    strength = strength.to(c.dtype)
    (unit_q, _), (unit_k, _) = (_normalised(x, c.dtype, l2norm) for x in (queries, keys))
    scale_tokens(
        torch.stack((unit_q, -unit_k), dim=1), (unit_k * strength).unsqueeze(1), c, False, scale, split, operands
    )  # fmt: skip
    return queries, keys, strength


def combine_grads(
    x: ChannelGrads, scale: torch.Tensor, l2norm: bool, saved: Tuple[torch.Tensor, ...], out_dtype: torch.dtype
) -> Tuple[torch.Tensor, ...]:
    """Gradients of q and k in ``out_dtype`` and of beta, and from `token_grads` the terms of the decays' gradient."""
    mark_static(x, saved)
    queries, keys, strength = saved
    (unit_q, per_q), (unit_k, per_k) = (_normalised(t, x.c.dtype, l2norm) for t in (queries, keys))
    dreading, dwritten, dc, dc_last = token_grads(x, False, scale)
    (dq, da), dwritten = dreading.unbind(1), dwritten[:, 0]
    dbeta = dot(unit_k, dwritten)
    dk = dwritten * strength - da
    if l2norm and per_q is not None and per_k is not None:
        dq, dk = (per * (dx - unit * dot(unit, dx)) for per, unit, dx in ((per_q, unit_q, dq), (per_k, unit_k, dk)))
    return dq.to(out_dtype), dk.to(out_dtype), dbeta, dc, dc_last


def _normalised(
    x: torch.Tensor, dtype: torch.dtype, l2norm: bool
) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
    """``x`` in ``dtype``, of length one if requested, and one over its length."""
    if not l2norm:
        return x.to(dtype), None
    per = reciprocal_length(x, dtype)
    return x.to(dtype) * per, per


def _saved(chunk: int, key: int, v: torch.Tensor, lower_bound: Optional[float]) -> List[Shape]:
    """Shapes of ``Prepared.saved``."""
    own: List[Shape] = [(1, (chunk, key), v.dtype), (1, (chunk, key), v.dtype), (1, (chunk, 1), torch.float32)]
    return [*saved_shapes(1, chunk, key, lower_bound), *own]


KDA = Family("kda", ("q", "k", "v", "g", "beta"), False, True, prepare, prepare_bwd, _saved)

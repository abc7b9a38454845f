"""DPLR, the rule of RWKV-7: a decay for each channel, and a key-value pair that is separate from the erasing pair."""

from typing import List, Optional, Tuple

import torch

from myfla.ops._delta.bf16.channels import (
    ChannelGrads,
    Operands,
    allocate_operands,
    chunk_products,
    decay_grad,
    load_kinds,
    operand_grads,
    saved_shapes,
    scale_tokens,
    sum_decays,
    token_grads,
)
from myfla.ops._delta.bf16.form import Family, Grads, Plan, Prepared, Shape, Tensors
from myfla.ops._delta.bf16.layout import Places
from myfla.ops._delta.bf16.static import mark_static
from myfla.ops._delta.subchunks import SubChunks


def prepare(x: Tensors, plan: Plan) -> Prepared:
    """q, k, a, b, gk ``[N, H, K]``, v ``[N, H, V]``."""
    q, k, _, a, b, gk = x
    split, operands = allocate_operands(k, 2, plan)
    c = plan.run(sum_decays)(plan.layout.places, gk, split, plan.dtype)
    plan.run(load_tokens)(plan.layout.places, q, k, a, b, c, plan.scale_tensor(k), split, operands)
    return chunk_products(plan, split, c, operands)


def prepare_bwd(x: Tensors, plan: Plan, p: Prepared, grads: Grads) -> Tuple[torch.Tensor, ...]:
    """Gradients of q, k, a, b and gk, in chunks."""
    k, gk = x[1], x[5]
    found, _ = operand_grads(plan, p, grads)
    dq, dk, da, db, dc, dc_last = plan.run(combine_grads)(found, plan.scale_tensor(k), k.dtype)
    dgk = plan.run(decay_grad)(
        plan.layout.places, dc, dc.cumsum(1), dc_last, grads.h, grads.dh, found.c, gk, found.split
    )  # fmt: skip
    return dq, dk, da, db, dgk


def load_tokens(
    places: Places, q: torch.Tensor, k: torch.Tensor, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor,
    scale: torch.Tensor, split: SubChunks, operands: Operands,
) -> None:
    """Cut the tokens ``[N, H, K]`` into chunks and scale them into ``operands``."""
    mark_static(places, q, k, a, b, c, split, operands)
    heads = q.shape[1]
    reading, written = load_kinds(places, (q, a), heads), load_kinds(places, (b, k), heads)
    scale_tokens(reading, written, c, True, scale, split, operands)


def combine_grads(x: ChannelGrads, scale: torch.Tensor, out_dtype: torch.dtype) -> Tuple[torch.Tensor, ...]:
    """Gradients of q, k, a and b in ``out_dtype``, and from `token_grads` the terms of the decays' gradient."""
    mark_static(x)
    dreading, dwritten, dc, dc_last = token_grads(x, True, scale)
    (dq, da), (db, dk) = dreading.unbind(1), dwritten.unbind(1)
    return (*(dx.to(out_dtype) for dx in (dq, dk, da, db)), dc, dc_last)


def _saved(chunk: int, key: int, v: torch.Tensor, lower_bound: Optional[float]) -> List[Shape]:
    """Shapes of ``Prepared.saved``."""
    return saved_shapes(2, chunk, key, lower_bound)


DPLR = Family("dplr_delta_rule", ("q", "k", "v", "a", "b", "gk"), True, True, prepare, prepare_bwd, _saved)

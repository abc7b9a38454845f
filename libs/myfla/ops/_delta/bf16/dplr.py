"""DPLR, the rule of RWKV-7: a decay for each channel, and a key-value pair of its own beside the one that erases."""

from typing import List, Optional, Tuple

import torch

from myfla.ops._delta.bf16.channels import (
    ChannelGrads,
    Operands,
    decay_grad,
    finish,
    load_kinds,
    make_room,
    saved_shapes,
    scale_tensor,
    scale_tokens,
    start_bwd,
    sum_decays,
    token_grads,
)
from myfla.ops._delta.bf16.fixed import fixed
from myfla.ops._delta.bf16.form import Family, Grads, Options, Prepared, Shape, Tensors
from myfla.ops._delta.bf16.layout import Places
from myfla.ops._delta.subchunks import SubChunks


def prepare(x: Tensors, how: Options) -> Prepared:
    """q, k, a, b, gk ``[N, H, K]``, v ``[N, H, V]``."""
    q, k, _, a, b, gk = x
    split, to = make_room(k, 2, how)
    c = how.run(sum_decays)(how.layout.places, gk, split, how.dtype)
    how.run(load_tokens)(how.layout.places, q, k, a, b, c, scale_tensor(how, k), split, to)
    return finish(how, split, c, to)


def prepare_bwd(x: Tensors, how: Options, p: Prepared, grads: Grads) -> Tuple[torch.Tensor, ...]:
    """Gradients of q, k, a, b and gk, in chunks."""
    k, gk = x[1], x[5]
    found, _ = start_bwd(how, p, grads)
    dq, dk, da, db, flow, handing = how.run(collect)(found, scale_tensor(how, k), k.dtype)
    dgk = how.run(decay_grad)(
        how.layout.places, flow, flow.cumsum(1), handing, grads.h, grads.dh, found.c, gk, found.split
    )  # fmt: skip
    return dq, dk, da, db, dgk


def load_tokens(
    places: Places, q: torch.Tensor, k: torch.Tensor, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor,
    scale: torch.Tensor, split: SubChunks, to: Operands,
) -> None:
    """Cut the tokens ``[N, H, K]`` into chunks and scale them into ``to``."""
    fixed(places, q, k, a, b, c, split, to)
    heads = q.shape[1]
    reading, written = load_kinds(places, (q, a), heads), load_kinds(places, (b, k), heads)
    scale_tokens(reading, written, c, True, scale, split, to)


def collect(x: ChannelGrads, scale: torch.Tensor, low: torch.dtype) -> Tuple[torch.Tensor, ...]:
    """Gradients of q, k, a and b in ``low``, and of `token_grads` what the decays' is summed from."""
    fixed(x)
    dreading, dwritten, flow, handing = token_grads(x, True, scale)
    (dq, da), (db, dk) = dreading.unbind(1), dwritten.unbind(1)
    return (*(dx.to(low) for dx in (dq, dk, da, db)), flow, handing)


def _saved(chunk: int, key: int, v: torch.Tensor, lower_bound: Optional[float]) -> List[Shape]:
    """Shapes of ``Prepared.saved``."""
    return saved_shapes(2, chunk, key, lower_bound)


DPLR = Family("dplr_delta_rule", ("q", "k", "v", "a", "b", "gk"), True, True, prepare, prepare_bwd, _saved)

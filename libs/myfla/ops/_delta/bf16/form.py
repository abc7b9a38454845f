"""The chunk form on a GPU's matrix units, for every family: bfloat16 products, float32 sums, decays and states.

A family prepares its tokens (`Prepared`); the triangular system, the scan, the outputs and their backward are shared.
For a chunk, with the state ``h [K, V]`` before it::

    A_inv = (I + L)^-1,   u = A_inv v_in,   w = A_inv k_in            every chunk at once
    v_new = u - w h                                                   chunk after chunk
    h'    = g_last h + k_out^T [v_new; v]
    o     = q_in h + A_qk [v_new; v]                                  every chunk at once

and backwards, with dh' the gradient of the state after the chunk::

    dv_new = A_qk^T do + k_out dh',   dv_in = A_inv^T dv_new
    dh     = g_last dh' + q_in^T do - w^T dv_new
    [do; dv_in] [h; v_new; v]^T                                       gradients of q_in, A_qk; less those of k_in, L
    [v_new; v] dh'^T                                                  gradient of k_out

Matrices are rounded to the inputs' dtype where a product reads them. A family with a second pair of keys and values
(DPLR) has them beneath: R = 2C rows where others have R = C, and ``v_in = A_in v``.
"""

from typing import Any, Callable, List, NamedTuple, Optional, Sequence, Tuple

import torch

from myfla.backends.compiler import compiled
from myfla.ops._delta.bf16.inverse import invert_blocks, join_inverse
from myfla.ops._delta.bf16.layout import Layout, Places, load_into
from myfla.ops._delta.bf16.products import accumulate, product
from myfla.ops._delta.bf16.scan import advance, scan_bwd, scan_rows
from myfla.ops._delta.bf16.static import mark_static
from myfla.utils.dtypes import without_autocast

Tensors = Sequence[torch.Tensor]
Shape = Tuple[int, Tuple[int, int], torch.dtype]
"""Shape of a saved tensor: matrices in multiples of M, their rows and columns, dtype."""


class Plan(NamedTuple):
    """Options of the forward and the backward pass."""

    layout: Layout
    scale: float  # factor on q
    dtype: torch.dtype  # of sums and states
    fuse: bool = False  # have the elementwise passes compiled
    l2norm: bool = False  # bring q and k to length one first
    lower_bound: Optional[float] = None  # no log decay is below this

    @property
    def run(self) -> Callable[[Callable], Callable]:
        """The function that compiles a pass, if requested, before it is called."""
        return compiled if self.fuse else _as_it_is

    def scale_tensor(self, like: torch.Tensor) -> torch.Tensor:
        """The scale as a tensor ``[1]``: a compiler would make code for each number."""
        return torch.full((1,), self.scale, dtype=self.dtype, device=like.device)


class Prepared(NamedTuple):
    """A family's tokens, prepared; in their dtype except g_last and the blocks."""

    g_last: torch.Tensor  # [M, 1 or K, 1]  decay over the whole chunk
    reads: torch.Tensor  # [M, 2C, K + R] room for -w over q_in, queries decayed from the start; next to it A_qk
    k_in: torch.Tensor  # [M, C, K]  keys that read, decayed from the chunk's start
    k_out: torch.Tensor  # [M, R, K]  keys decayed to the chunk's end
    A_v: torch.Tensor  # [M, 2C, C] with a second pair the factors that read v: q over A_in; otherwise nothing
    blocks: Tuple[torch.Tensor, List[torch.Tensor]]  # of L, as `inverse` reads them
    saved: Tuple[torch.Tensor, ...]  # what the family's backward needs


def split_reads(reads: torch.Tensor, key: int) -> Tuple[torch.Tensor, torch.Tensor]:
    """``[-w; q_in] [M, 2C, K]`` and ``A_qk [M, C, R]`` of ``Prepared.reads``."""
    return reads[:, :, :key], reads[:, reads.shape[1] // 2 :, key:]


class Grads(NamedTuple):
    """The input of a family's backward."""

    reads: torch.Tensor  # [M, 2C, K + R]  of q_in over less k_in, and next to it of A_qk over less those of the system
    k_out: torch.Tensor  # [M, R, K]
    h: torch.Tensor  # [M, K, V]  the state before each chunk; with dh, the gradient of g_last
    dh: torch.Tensor  # [M, K, V]  of the state after it


class Family(NamedTuple):
    """A family in this form. Tokens are flat, ``[N, H, ...]``."""

    name: str
    inputs: Tuple[str, ...]  # q, k and v come first
    pair: bool  # whether there is a second pair of keys and values
    channels: bool  # whether each key channel has a separate decay
    prepare: Callable[[Tensors, Plan], Prepared]
    prepare_bwd: Callable[[Tensors, Plan, Prepared, Grads], Tuple[torch.Tensor, ...]]  # all but v's, in chunks
    saved: Callable[[int, int, torch.Tensor, Optional[float]], List[Shape]]  # of (C, K, v, lower_bound)


class Residuals(NamedTuple):
    """Tensors that the backward needs besides the inputs."""

    prepared: Prepared
    A_inv: torch.Tensor  # [M, C, C]
    stack: torch.Tensor  # [M, K + R, V]  the state before each chunk over v_new over v
    transitions: Optional[torch.Tensor]  # [rows, K, K] each row's transition, where sequences are cut

    def flat(self) -> Tuple[Optional[torch.Tensor], ...]:
        """The residuals in the form in which autograd saves them."""
        return (self.A_inv, self.stack, self.transitions, *self.prepared[:5], *self.prepared.saved)

    @classmethod
    def of(cls, flat: Sequence[Any]) -> "Residuals":
        """The inverse of `flat`."""
        return cls(Prepared(flat[3], flat[4], flat[5], flat[6], flat[7], (flat[0], []), tuple(flat[8:])), *flat[:3])


@without_autocast
def forward(
    v: torch.Tensor, family: Family, tensors: Tensors, initial_state: Optional[torch.Tensor], plan: Plan
) -> Tuple[torch.Tensor, torch.Tensor, Residuals]:
    """Outputs, final states and residuals for the backward.

    Args:
        v: the values, one of the tensors.
        family: which rule.
        tensors: its inputs, ``[B, T, H or HV, ...]``.
        initial_state: ``[N, HV, K, V]`` or None.
        plan: the options.

    Returns:
        o ``[B, T, HV, V]`` in v's dtype, final states ``[N, HV, K, V]`` in ``plan.dtype``, `Residuals`.
    """
    shape, x = v.shape, _flat(tensors)
    layout, run, v = plan.layout, plan.run, x[2]
    chunk, m, key, value = layout.chunk, layout.matrices, x[1].shape[2], v.shape[2]
    p = family.prepare(x, plan)
    rows = p.k_out.shape[1]
    A_inv = run(join_inverse)(*invert_blocks(*p.blocks, run), v.dtype)
    stack = v.new_empty(m, key + rows, value)
    u, values = stack[:, key : key + chunk], stack[:, key + chunk :] if family.pair else v.new_empty(m, chunk, value)
    run(load_into)(layout.places, v, layout.heads, values)
    product(A_inv, product(p.A_v[:, chunk:], values) if family.pair else values, out=u)
    wq = split_reads(p.reads, key)[0]
    product(A_inv, p.k_in, alpha=-1.0, out=wq[:, :chunk])
    final, transitions = scan_rows(run(advance), layout, p.g_last, wq, p.k_out, stack, initial_state, plan.dtype)
    o = run(_store)(layout.places, product(p.reads[:, chunk:], stack), v)
    return o.view(shape), final, Residuals(p, A_inv, stack, transitions)


@without_autocast
def backward(
    do: torch.Tensor, family: Family, tensors: Tensors, dfinal: Optional[torch.Tensor], plan: Plan, kept: Residuals
) -> Tuple[List[torch.Tensor], torch.Tensor]:
    """Gradients of the inputs, each in its own dtype, and of the initial states.

    Args:
        do: ``[B, T, HV, V]`` gradient of the outputs.
        family, tensors, plan: as given to `forward`.
        dfinal: ``[N, HV, K, V]`` gradient of the final states, or None.
        kept: residuals of the forward.
    """
    x, layout, run, p = _flat(tensors), plan.layout, plan.run, kept.prepared
    v, chunk, m = x[2], layout.chunk, layout.matrices
    key, value = p.k_out.shape[2], v.shape[2]
    three = v.new_empty(m, 3 * chunk, value)  # dv_new over do over dv_in
    dv_new, dout, dv_in = three.split(chunk, 1)
    run(load_into)(layout.places, do.to(v.dtype).flatten(0, 1), layout.heads, dout)
    wq, A_qk = split_reads(p.reads, key)
    product(A_qk[:, :, :chunk].transpose(1, 2), dout, out=dv_new)
    dh = v.new_empty(m, key, value)
    dinitial = scan_bwd(
        run(advance), layout, p.g_last, wq, p.k_out[:, :chunk], three[:, : 2 * chunk], kept.transitions, dfinal, dh,
        plan.dtype,
    )  # fmt: skip
    product(kept.A_inv.transpose(1, 2), dv_new, out=dv_in)
    outer, dv = three[:, chunk:], dv_in
    if family.pair:
        dv = product(p.A_v.transpose(1, 2), outer)
        accumulate(dv, p.k_out[:, chunk:], dh)
    grads = Grads(
        product(outer, kept.stack.transpose(1, 2), plan.dtype),
        product(kept.stack[:, key:], dh.transpose(1, 2), plan.dtype), kept.stack[:, :key], dh,
    )  # fmt: skip
    found = list(family.prepare_bwd(x, plan, p, grads))
    found.insert(2, dv)
    stored = [run(_store)(layout.places, dx, t) for dx, t in zip(found, x)]
    return [dx.view(t.shape) for dx, t in zip(stored, tensors)], dinitial


def _store(places: Places, x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Chunks as tokens."""
    mark_static(*places, x, like)
    return places.store(x, like)


def _flat(tensors: Tensors) -> List[torch.Tensor]:
    """``[B, T, ...]`` as ``[N, ...]``, with a last axis where there is one number for each head."""
    return [x.flatten(0, 1) if x.dim() == 4 else x.flatten(0, 1).unsqueeze(-1) for x in tensors]


def _as_it_is(function: Callable) -> Callable:
    return function

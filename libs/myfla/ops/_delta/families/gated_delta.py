"""The gated delta rule (Gated DeltaNet, arXiv 2412.06464): one decay a head.

With rows for tokens, and the decays of `chunk.decay`::

    A    = decay_mask * [scale Q; K] (beta K)^T      A_qk over L
    qk_in = exp_g [scale Q; K],   k_out = beta exp_g_to_end K,   v_in = V

``v_new`` is each token's error against the memory as it was, made consistent within the chunk; beta stands with the
keys that write. The gradient of the log decay of step t collects every path that crosses it: reads of the state by
tokens from t on, hand-overs by tokens before t, the state's own way, and pairs of tokens on either side of t. Each sum
has only the terms that cross, so nothing cancels: it is exact to rounding for strong decays too.
"""

from typing import Any, ClassVar, Dict, Tuple

import torch

from myfla.backends.official import CHUNK_GATED_DELTA_RULE, RECURRENT_GATED_DELTA_RULE, Kernel
from myfla.ops._delta.call import Call, Result, call_dtype
from myfla.ops._delta.chunk.contract import ChunkGrads, Chunks
from myfla.ops._delta.chunk.decay import TokenDecays, decay_mask, sums_between, token_decays
from myfla.ops._delta.families.base import Family, Plan, Sizes, Tensors
from myfla.ops._delta.families.rows import halves, load_rows, refine_system, store_rows
from myfla.ops._delta.layout import Block
from myfla.ops._delta.naive import delta_loop
from myfla.ops._delta.recurrent.step import DeltaStep
from myfla.ops._delta.sequences import each_sequence, first_state
from myfla.ops._delta.traced.step import delta_step
from myfla.ops._delta.workspace import Buffers

__all__ = ["GATED_DELTA"]

EPSILON = 1e-6
"""Added to squared lengths, as in `myfla.utils.l2norm`."""


class GatedDelta(Family):
    """``q, k [B, T, H, K]``, ``v [B, T, HV, V]``, ``g, beta [B, T, HV]``."""

    name = "gated_delta"
    inputs = ("q", "k", "v", "g", "beta")
    traced_chunk = 32
    block_factor = 2  # a call less matters more here than a buffer that a second cache holds whole
    fuses_l2norm = True
    kernels: ClassVar[Dict[str, Kernel]] = {"chunk": CHUNK_GATED_DELTA_RULE, "recurrent": RECURRENT_GATED_DELTA_RULE}
    step = DeltaStep()

    def residuals(self, chunk: int, key: int, value: int) -> Tuple[Sizes, Sizes]:
        always: Sizes = {"decay_mask": (chunk, chunk), "A": (2 * chunk, chunk), "rstd": (2 * chunk, 1)}
        short: Sizes = {"qk": (2 * chunk, key), "k_out": (chunk, key), "A_beta": (2 * chunk, chunk)}
        return always, short

    def prepare(self, block: Block, x: Tensors, plan: Plan, buffers: Buffers) -> Chunks:
        q, k, v, g, beta = x
        heads, chunk, key = v.shape[2], block.chunk, k.shape[3]
        c, decays = token_decays(block, g, beta, plan.scale, plan.dtype)
        qk = buffers.get("qk", 2 * chunk, key)
        keys = qk[:, chunk:]
        if not buffers.known("qk"):
            load_rows(block, q, heads, qk[:, :chunk])
            load_rows(block, k, heads, keys)
            if plan.l2norm:
                rstd = buffers.get("rstd", 2 * chunk, 1)
                if not buffers.again:
                    torch.linalg.vector_norm(qk, dim=-1, keepdim=True, out=rstd).square_().add_(EPSILON).rsqrt_()
                qk.mul_(rstd)
        A = buffers.get("A", 2 * chunk, chunk)
        if not buffers.again:
            mask = decay_mask(c, buffers, buffers.get("decay_mask", chunk, chunk))
            torch.bmm(qk, keys.transpose(1, 2), out=A)
            refine_system(A[:, chunk:], keys, keys, decays.beta)
            halves(A, chunk).mul_(mask.unsqueeze(1))[:, 0].mul_(plan.scale)
        inference = not buffers.again and not buffers.kept  # nobody asks for A again
        A_beta = A if inference else buffers.get("A_beta", 2 * chunk, chunk)
        if not buffers.known("A_beta"):
            torch.mul(A, decays.beta.transpose(1, 2), out=A_beta)
        qk_in = torch.mul(qk, decays.qk_in, out=buffers.temporary("qk_in", 2 * chunk, key))
        k_out = buffers.get("k_out", chunk, key)
        if not buffers.known("k_out"):
            torch.mul(keys, decays.k_out, out=k_out)
        values = v[:, :0] if buffers.again else load_rows(block, v, heads, buffers.temporary("v_in", chunk, v.shape[3]))
        return Chunks(decays.g_last_exp, qk_in, k_out, A_beta[:, :chunk], values, A_beta[:, chunk:], extra=decays)

    def prepare_bwd(
        self, block: Block, x: Tensors, plan: Plan, buffers: Buffers, p: Chunks, d: ChunkGrads, grads: Tensors
    ) -> None:
        heads, chunk, key = x[2].shape[2], block.chunk, x[1].shape[3]
        decays: TokenDecays = p.extra
        beta, qk, A = decays.beta, buffers.get("qk", 2 * chunk, key), buffers.get("A", 2 * chunk, chunk)
        keys, weight = qk[:, chunk:], beta.transpose(1, 2)

        # Through the state.
        dqk, dk_out = d.qk_in.mul_(decays.qk_in), d.k_out
        dA = torch.bmm(d.out, d.v_new.transpose(1, 2), out=buffers.temporary("dA", 2 * chunk, chunk))
        product = buffers.temporary("out", 2 * chunk, key)  # products to be summed take the place of what is read
        read = torch.mul(qk, dqk, out=product).sum(-1, keepdim=True)
        wrote = torch.mul(keys, dk_out, out=product[:, :chunk]).sum(-1, keepdim=True).mul_(decays.exp_g_to_end)
        crossing = read[:, :chunk] + read[:, chunk:]
        dg = crossing.flip(1).cumsum_(1).flip(1).add_(d.g_last * decays.g_last_exp)
        handed = wrote * beta
        dg[:, 1:].add_(handed[:, :-1].cumsum(1))

        # Within the chunk.
        halves(dA, chunk)[:, 1].diagonal(dim1=1, dim2=2).zero_()
        pairs = torch.mul(dA, A, out=buffers.temporary("out", 2 * chunk, chunk))
        diagonal = pairs.diagonal(dim1=1, dim2=2)
        own = diagonal.unsqueeze(-1).clone()
        diagonal.zero_()
        wrote.add_(pairs.sum(1).unsqueeze(-1))
        pairs.mul_(weight)
        read.add_(pairs.sum(-1, keepdim=True))
        both = halves(pairs, chunk)
        across = torch.add(both[:, 0], both[:, 1], out=buffers.temporary("across", chunk, chunk))
        earlier = torch.ones(chunk, chunk, dtype=A.dtype, device=A.device).triu_(1)  # sums over the tokens before each
        before = across.view(-1, chunk) @ earlier
        dg.add_(before.view(-1, chunk, chunk).tril_().sum(1).unsqueeze(-1))
        halves(dA, chunk).mul_(buffers.get("decay_mask", chunk, chunk).unsqueeze(1))[:, 0].mul_(plan.scale)
        dA.mul_(weight)
        dqk.baddbmm_(dA, keys)
        dk_out.mul_(decays.k_out).baddbmm_(dA.transpose(1, 2), qk)
        dqk[:, chunk:].add_(dk_out)

        dbeta = wrote.add_(own)
        if plan.l2norm:
            read[:, :chunk].addcmul_(own, beta)
            read[:, chunk:].addcmul_(dbeta, beta)
            dqk.addcmul_(qk, read, value=-1).mul_(buffers.get("rstd", 2 * chunk, 1))
        found = dqk[:, :chunk], dqk[:, chunk:], d.v_in, dg, dbeta
        for one, out in zip(found, grads):
            store_rows(block, one, heads, out if out.dim() == 4 else out.unsqueeze(-1))

    def naive(self, call: Call) -> Result:
        return naive_delta(call)

    def official(self, call: Call) -> Dict[str, Any]:
        return {**super().official(call), **official_options(call), **dict(zip(("gk", "gv"), call.more))}

    def traced_step(self, call: Call) -> Result:
        return delta_step(call)

    def plain(self, x: Tensors, scale: float) -> Chunks:
        q, k, v, g, beta = x
        mask, exp_g, writes = sums_between(g).squeeze(-1).exp(), g.cumsum(-2).exp(), beta * k
        columns = writes.transpose(-1, -2)
        return Chunks(
            exp_g[..., -1:, :], torch.cat([scale * exp_g * q, exp_g * k], -2), writes * mask[..., -1, :].unsqueeze(-1),
            scale * mask * (q @ columns), v, mask * (k @ columns),
        )  # fmt: skip


def naive_delta(call: Call) -> Result:
    """The token loop, for shared heads and packed sequences."""
    q, k, v, g, beta = call.x
    repeats, dtype = v.shape[2] // q.shape[2], call_dtype(call)
    q, k = (x.repeat_interleave(repeats, dim=2) if repeats > 1 else x for x in (q, k))
    x = [t.to(dtype) for t in (q, k, v, torch.zeros_like(beta) if g is None else g, beta)]

    def run(*given: torch.Tensor) -> Result:
        q, k, v, g, beta, state = given
        return delta_loop(q, k, v, g, beta, call.scale, state)

    return each_sequence(run, x, first_state(call), call.cu_seqlens)


def official_options(call: Call) -> Dict[str, Any]:
    """What the official function does to its inputs first."""
    options: Dict[str, Any] = {"use_qk_l2norm_in_kernel": call.l2norm}
    return options if call.activation is None else {**options, **call.activation.official()}


GATED_DELTA = GatedDelta()

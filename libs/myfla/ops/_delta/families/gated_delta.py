"""The gated delta rule (Gated DeltaNet, arXiv 2412.06464), with one decay for each head.

With rows for tokens, and the decays of `chunk.decay`::

    A    = decay_mask * [scale Q; K] (beta K)^T      A_qk over L
    qk_in = exp_g [scale Q; K],   k_out = beta exp_g_to_end K,   v_in = V

``v_new`` is the error of each token's prediction from the state before it, solved for all tokens of the chunk at once;
beta multiplies the writing keys. The gradient of the log decay of step t is a sum over all paths that cross it: reads
of the state by token t and later ones, writes of earlier tokens to the state after the chunk, the incoming state's part
of that, and reads of a token before t by one from t on. Only terms that cross are summed, so nothing cancels, and the
sum is exact to rounding for strong decays too.
"""

from typing import Any, ClassVar, Dict

import torch

from myfla.backends.official import CHUNK_GATED_DELTA_RULE, RECURRENT_GATED_DELTA_RULE, Kernel
from myfla.ops._delta.call import Call, Result
from myfla.ops._delta.chunk.decay import TokenDecays, decay_grad, decay_mask, sums_between, token_decays
from myfla.ops._delta.chunk.recurrence import ChunkGrads, Chunks
from myfla.ops._delta.chunk.triangular import refine_system
from myfla.ops._delta.families.base import Family, Options, Tensors
from myfla.ops._delta.layout import Block
from myfla.ops._delta.naive import delta_loop
from myfla.ops._delta.recurrent.step import DeltaStep
from myfla.ops._delta.traced.step import delta_step
from myfla.ops._delta.workspace import BlockShapes, Buffers

__all__ = ["GATED_DELTA"]

EPSILON = 1e-6
"""Added to squared lengths, as in `myfla.utils.l2norm`."""


class GatedDelta(Family):
    """``q, k [B, T, H, K]``, ``v [B, T, HV, V]``, ``g, beta [B, T, HV]``."""

    name = "gated_delta"
    inputs = ("q", "k", "v", "g", "beta")
    traced_chunk = 32
    fuses_l2norm = True
    kernels: ClassVar[Dict[str, Kernel]] = {"chunk": CHUNK_GATED_DELTA_RULE, "recurrent": RECURRENT_GATED_DELTA_RULE}
    step = DeltaStep()
    token_loop = staticmethod(delta_loop)

    def shapes(self, chunk: int, key: int, value: int) -> BlockShapes:
        square, tall, rows = (chunk, chunk), (2 * chunk, chunk), (2 * chunk, key)
        return BlockShapes(
            residuals={"decays": (5 * chunk, 1), "decay_mask": square, "A": tall, "rstd": (2 * chunk, 1)},
            recomputable={"qk": rows, "k_out": (chunk, key), "A_beta": tall},
            forward={"qk_in": rows, "v_in": (chunk, value)},
            backward={"qk_in": rows, "dA": tall, "both_A_dA": square},
            aliases={"product": ("out", rows), "A_dA": ("out", tall)},
        )

    def prepare(self, block: Block, x: Tensors, options: Options, buffers: Buffers) -> Chunks:
        (q, k, v, g, beta), chunk = x, block.chunk
        qk, A, k_out, d = buffers["qk"], buffers["A"], buffers["k_out"], TokenDecays.of(buffers["decays"], chunk)
        A_beta = A if buffers.inference else buffers["A_beta"]  # A is not needed after this
        keys, values = qk[:, chunk:], v[:, :0]
        if not buffers.has_recomputable:
            block.load(q, qk[:, :chunk], pad=False)
            block.load(k, keys, pad=False)
            if options.l2norm:
                rstd = buffers["rstd"]
                if not buffers.backward:
                    torch.linalg.vector_norm(qk, dim=-1, keepdim=True, out=rstd).square_().add_(EPSILON).rsqrt_()
                qk.mul_(rstd)
        if not buffers.backward:
            values = block.load(v, buffers["v_in"], pad=False)
            mask = decay_mask(token_decays(block, g, beta, options.scale, d), buffers["decay_mask"])
            torch.bmm(qk, keys.transpose(1, 2), out=A)
            refine_system(A[:, chunk:], keys, keys, d.beta)
            A.view(-1, 2, chunk, chunk).mul_(mask.unsqueeze(1))[:, 0].mul_(options.scale)
        if not buffers.has_recomputable:
            torch.mul(A, d.beta.transpose(1, 2), out=A_beta)
            torch.mul(keys, d.k_out, out=k_out)
        qk_in = torch.mul(qk, d.qk_in, out=buffers["qk_in"])
        return Chunks(d.g_last_exp, qk_in, k_out, A_beta[:, :chunk], values, A_beta[:, chunk:], extra=d)

    def prepare_bwd(
        self, block: Block, x: Tensors, options: Options, buffers: Buffers, p: Chunks, d: ChunkGrads, grads: Tensors
    ) -> None:
        decays: TokenDecays = p.extra
        chunk, beta, qk, A = block.chunk, decays.beta, buffers["qk"], buffers["A"]
        keys, beta_row = qk[:, chunk:], beta.transpose(1, 2)

        # Through the state.
        dqk, dk_out = d.qk_in.mul_(decays.qk_in), d.k_out
        dA = torch.bmm(d.out, d.v_new.transpose(1, 2), out=buffers["dA"])
        product = buffers["product"]
        qk_dqk = torch.mul(qk, dqk, out=product).sum(-1, keepdim=True)
        dbeta = torch.mul(keys, dk_out, out=product[:, :chunk]).sum(-1, keepdim=True).mul_(decays.exp_g_to_end)
        reads, writes = qk_dqk[:, :chunk] + qk_dqk[:, chunk:], dbeta * beta

        # Within the chunk.
        dA_qk_kk = dA.view(-1, 2, chunk, chunk)
        dA_qk_kk[:, 1].diagonal(dim1=1, dim2=2).zero_()
        A_dA = torch.mul(dA, A, out=buffers["A_dA"])
        diagonal = A_dA.diagonal(dim1=1, dim2=2)
        self_reads = diagonal.unsqueeze(-1).clone()
        diagonal.zero_()
        dbeta.add_(A_dA.sum(1).unsqueeze(-1))
        A_dA.mul_(beta_row)
        qk_dqk.add_(A_dA.sum(-1, keepdim=True))
        both_A_dA = torch.add(A_dA[:, :chunk], A_dA[:, chunk:], out=buffers["both_A_dA"])
        dg = decay_grad(reads, writes, d.g_last * decays.g_last_exp, both_A_dA)
        dA_qk_kk.mul_(buffers["decay_mask"].unsqueeze(1))[:, 0].mul_(options.scale)
        dA.mul_(beta_row)
        dqk.baddbmm_(dA, keys)
        dk_out.mul_(decays.k_out).baddbmm_(dA.transpose(1, 2), qk)
        dqk[:, chunk:].add_(dk_out)

        dbeta.add_(self_reads)
        if options.l2norm:
            qk_dqk[:, :chunk].addcmul_(self_reads, beta)
            qk_dqk[:, chunk:].addcmul_(dbeta, beta)
            dqk.addcmul_(qk, qk_dqk, value=-1).mul_(buffers["rstd"])
        for dx, out in zip((dqk[:, :chunk], dqk[:, chunk:], d.v_in, dg, dbeta), grads):
            block.store(dx, out if out.dim() == 4 else out.unsqueeze(-1))

    def official(self, call: Call) -> Dict[str, Any]:
        return {**super().official(call), **official_options(call), **dict(zip(("gk", "gv"), call.channel_decays))}

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


def official_options(call: Call) -> Dict[str, Any]:
    """The arguments with which the official function prepares its inputs."""
    options: Dict[str, Any] = {"use_qk_l2norm_in_kernel": call.l2norm}
    return options if call.activation is None else {**options, **call.activation.official()}


GATED_DELTA = GatedDelta()

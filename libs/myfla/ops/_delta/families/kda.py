"""Kimi Delta Attention (arXiv 2510.26692): the delta rule with a decay for every key channel.

In the notation of `chunk.channels`, beta stands with the keys that write, as in `gated_delta`::

    left = [scale q; k],  right = [beta k],  A = [A_qk; L],  qk_in = left',  k_out = right',  v_in = v

Keys that read and keys that write are tied, so that one triangular system serves both, half the work of the general
rule with a diagonal-plus-low-rank transition.
"""

from typing import Any, ClassVar, Dict

import torch

from myfla.backends.official import Kernel
from myfla.ops._delta.call import Call, Result
from myfla.ops._delta.chunk.channels import Channels, token_grads
from myfla.ops._delta.chunk.contract import ChunkGrads, Chunks
from myfla.ops._delta.chunk.decay import sums_between
from myfla.ops._delta.families.base import Plan, Tensors
from myfla.ops._delta.families.channel import ChannelFamily
from myfla.ops._delta.families.dplr import decayed
from myfla.ops._delta.families.gated_delta import naive_delta, official_options
from myfla.ops._delta.families.rows import load_rows, refine_system, store_rows
from myfla.ops._delta.layout import Block
from myfla.ops._delta.recurrent.step import KdaStep
from myfla.ops._delta.traced.step import kda_step
from myfla.ops._delta.workspace import Buffers, split_heads

__all__ = ["KDA"]


class Kda(ChannelFamily):
    """``q, k [B, T, H, K]``, ``v [B, T, HV, V]``, ``g [B, T, HV, K]``, ``beta [B, T, HV]``."""

    name = "kda"
    inputs = ("q", "k", "v", "g", "beta")
    kernels: ClassVar[Dict[str, Kernel]] = {
        "chunk": Kernel("fla.ops.kda", "chunk_kda"), "recurrent": Kernel("fla.ops.kda", "fused_recurrent_kda", False),
    }
    step = KdaStep()

    def prepare(self, block: Block, x: Tensors, plan: Plan, buffers: Buffers) -> Chunks:
        q, k, v, g, beta = x
        heads, chunk = v.shape[2], block.chunk
        weight = g.new_empty(block.size * heads, chunk, 1, dtype=plan.dtype)
        block.load(beta.unsqueeze(-1), split_heads(weight, heads))

        def load(left: torch.Tensor, right: torch.Tensor) -> None:
            load_rows(block, q, heads, left[:, :chunk]).mul_(plan.scale)
            load_rows(block, k, heads, left[:, chunk:])
            torch.mul(left[:, chunk:], weight, out=right)

        c = self.weigh(block, g, load, buffers)
        if not buffers.again:
            refine_system(c.A[:, chunk:], c.left[:, chunk:], c.right, weight, c.levels)
        values = v[:, :0] if buffers.again else load_rows(block, v, heads, buffers.temporary("v_in", chunk, v.shape[3]))
        return Chunks(c.g_last, c.left, c.out, c.A[:, :chunk], values, c.A[:, chunk:], extra=(c, weight))

    def prepare_bwd(
        self, block: Block, x: Tensors, plan: Plan, buffers: Buffers, p: Chunks, d: ChunkGrads, grads: Tensors
    ) -> None:
        c: Channels = p.extra[0]
        weight, chunk, key, heads = p.extra[1], block.chunk, x[1].shape[3], x[2].shape[2]
        store_rows(block, d.v_in, heads, grads[2])
        dA = torch.bmm(d.out, d.v_new.transpose(1, 2), out=buffers.temporary("dA", 2 * chunk, chunk))
        dleft, dright, dg = token_grads(c, self.before, chunk, dA, d.qk_in, d.k_out, d.g_last, buffers)
        keys = load_rows(block, x[1], heads, buffers.temporary("keys", chunk, key))
        dbeta = torch.mul(keys, dright, out=keys).sum(-1, keepdim=True)
        dq, dk = dleft[:, :chunk].mul_(plan.scale), dleft[:, chunk:].addcmul_(dright, weight)
        for found, out in zip((dq, dk, dg, dbeta), (grads[0], grads[1], grads[3], grads[4].unsqueeze(-1))):
            store_rows(block, found, heads, out)

    def naive(self, call: Call) -> Result:
        return naive_delta(call)

    def official(self, call: Call) -> Dict[str, Any]:
        return {**super().official(call), **official_options(call)}

    def traced_step(self, call: Call) -> Result:
        return kda_step(call)

    def plain(self, x: Tensors, scale: float) -> Chunks:
        q, k, v, g, beta = x
        pair, exp_g, writes, q = sums_between(g).exp(), g.cumsum(-2).exp(), beta * k, q * scale
        return Chunks(
            exp_g[..., -1, :].unsqueeze(-1), torch.cat([q * exp_g, k * exp_g], -2), writes * pair[..., -1, :, :],
            decayed(q, writes, pair), v, decayed(k, writes, pair),
        )  # fmt: skip


KDA = Kda()

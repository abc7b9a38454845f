"""Kimi Delta Attention (arXiv 2510.26692): the delta rule with a decay for every key channel.

In the notation of `families.channel`, beta multiplies the writing keys, as in `gated_delta`::

    left = [scale q; k],  right = [beta k],  A = [A_qk; L],  qk_in = left',  k_out = right',  v_in = v

Reading and writing keys are the same, so that one triangular system serves both, half the work of the general rule with
a diagonal-plus-low-rank transition.
"""

from typing import Any, ClassVar, Dict

import torch

from myfla.backends.official import Kernel
from myfla.ops._delta.call import Call, Result
from myfla.ops._delta.chunk.decay import sums_between
from myfla.ops._delta.chunk.recurrence import ChunkGrads, Chunks
from myfla.ops._delta.chunk.triangular import refine_system
from myfla.ops._delta.families.base import Options, Tensors
from myfla.ops._delta.families.channel import ChannelFamily
from myfla.ops._delta.families.dplr import decayed
from myfla.ops._delta.families.gated_delta import official_options
from myfla.ops._delta.layout import Block
from myfla.ops._delta.naive import delta_loop
from myfla.ops._delta.recurrent.step import KdaStep
from myfla.ops._delta.traced.step import kda_step
from myfla.ops._delta.workspace import BlockShapes, Buffers

__all__ = ["KDA"]


class Kda(ChannelFamily):
    """``q, k [B, T, H, K]``, ``v [B, T, HV, V]``, ``g [B, T, HV, K]``, ``beta [B, T, HV]``."""

    name = "kda"
    inputs = ("q", "k", "v", "g", "beta")
    kernels: ClassVar[Dict[str, Kernel]] = {
        "chunk": Kernel("fla.ops.kda", "chunk_kda"), "recurrent": Kernel("fla.ops.kda", "fused_recurrent_kda", False),
    }
    step = KdaStep()
    token_loop = staticmethod(delta_loop)

    def shapes(self, chunk: int, key: int, value: int) -> BlockShapes:
        shapes = super().shapes(chunk, key, value)
        return shapes._replace(residuals={"beta": (chunk, 1), **shapes.residuals})

    def prepare(self, block: Block, x: Tensors, options: Options, buffers: Buffers) -> Chunks:
        (q, k, v, g, beta), chunk, strength = x, block.chunk, buffers["beta"]
        if not buffers.backward:
            block.load(beta.unsqueeze(-1), strength)

        def load(left: torch.Tensor, right: torch.Tensor) -> None:
            block.load(q, left[:, :chunk], pad=False).mul_(options.scale)
            block.load(k, left[:, chunk:], pad=False)
            torch.mul(left[:, chunk:], strength, out=right)

        c, values = self.scaled_tokens(block, g, load, buffers), v[:, :0]
        if not buffers.backward:
            refine_system(c.A[:, chunk:], c.left[:, chunk:], c.right, strength, c.strong)
            values = block.load(v, buffers["v_in"], pad=False)
        return Chunks(c.g_last, c.left, c.out, c.A[:, :chunk], values, c.A[:, chunk:], extra=c)

    def prepare_bwd(
        self, block: Block, x: Tensors, options: Options, buffers: Buffers, p: Chunks, d: ChunkGrads, grads: Tensors
    ) -> None:
        c, strength, chunk = p.extra, buffers["beta"], block.chunk
        block.store(d.v_in, grads[2])
        dleft, dright, dg = self.token_grads(block, c, d, buffers)
        keys = block.load(x[1], buffers["dk_out"], pad=False)
        dbeta = torch.mul(keys, dright, out=keys).sum(-1, keepdim=True)
        dq, dk = dleft[:, :chunk].mul_(options.scale), dleft[:, chunk:].addcmul_(dright, strength)
        for dx, out in zip((dq, dk, dg, dbeta), (grads[0], grads[1], grads[3], grads[4].unsqueeze(-1))):
            block.store(dx, out)

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

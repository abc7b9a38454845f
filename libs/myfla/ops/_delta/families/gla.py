"""Rules without the delta rule's correction: a decaying sum of key-value products, ``h <- exp(g) h + k v^T``.

``SIMPLE_GLA`` has one decay for each head (RetNet, Mamba-2's state space duality), ``GLA`` one for every key channel
(gated linear attention, arXiv 2312.06635). There is no triangular system to solve: ``v_new = v`` in the notation of
`chunk.recurrence`. The gradient of a log decay is a sum over all paths that cross its step, as in `gated_delta`.
"""

from typing import Any, ClassVar, Dict

import torch

from myfla.backends.official import Kernel
from myfla.ops._delta.call import Call, Result
from myfla.ops._delta.chunk.decay import TokenDecays, decay_grad, decay_mask, sums_between, token_decays
from myfla.ops._delta.chunk.recurrence import ChunkGrads, Chunks
from myfla.ops._delta.families.base import Family, Options, Tensors, per_value_head
from myfla.ops._delta.families.channel import ChannelFamily
from myfla.ops._delta.families.dplr import decayed
from myfla.ops._delta.layout import Block
from myfla.ops._delta.naive import gla_loop
from myfla.ops._delta.recurrent.step import GlaStep
from myfla.ops._delta.traced.step import gla_step
from myfla.ops._delta.workspace import BlockShapes, Buffers

__all__ = ["GLA", "SIMPLE_GLA"]


class _Sum(Family):
    """The base class of both: ``q, k [B, T, H, K]``, ``v [B, T, HV, V]`` and a log decay g."""

    inputs = ("q", "k", "v", "g")
    corrects = False
    step = GlaStep()
    token_loop = staticmethod(gla_loop)

    def official(self, call: Call) -> Dict[str, Any]:
        q, k, v, g = call.x
        q, k = per_value_head(q, k, v)
        return {"q": q, "k": k, "v": v, **self.official_decays(call, g)}

    def official_decays(self, call: Call, g: torch.Tensor) -> Dict[str, Any]:
        """The log decays with their official argument names."""
        return {"g": g}

    def traced_step(self, call: Call) -> Result:
        return gla_step(call)


class SimpleGla(_Sum):
    """``g [B, T, HV]``."""

    name = "simple_gla"
    traced_chunk = 32
    kernels: ClassVar[Dict[str, Kernel]] = {
        "chunk": Kernel("fla.ops.simple_gla", "chunk_simple_gla"),
        "recurrent": Kernel("fla.ops.simple_gla", "fused_recurrent_simple_gla"),
    }

    def shapes(self, chunk: int, key: int, value: int) -> BlockShapes:
        square, rows = (chunk, chunk), (chunk, key)
        return BlockShapes(
            residuals={"decays": (5 * chunk, 1), "decay_mask": square, "A": square},
            recomputable={"q": rows, "k": rows},
            forward={"q_in": rows, "k_out": rows, "v_in": (chunk, value)},
            backward={"q_in": rows, "k_out": rows, "dA": square, "A_dA": square},
            aliases={"product": ("out", rows)},
        )

    def prepare(self, block: Block, x: Tensors, options: Options, buffers: Buffers) -> Chunks:
        (q, k, v, g), chunk = x, block.chunk
        queries, keys, A, d = buffers["q"], buffers["k"], buffers["A"], TokenDecays.of(buffers["decays"], chunk)
        values = v[:, :0]
        if not buffers.has_recomputable:
            block.load(q, queries, pad=False)
            block.load(k, keys)  # no beta makes pads write nothing
        if not buffers.backward:
            values = block.load(v, buffers["v_in"], pad=False)
            mask = decay_mask(token_decays(block, g, None, options.scale, d), buffers["decay_mask"])
            torch.bmm(queries, keys.transpose(1, 2), out=A).mul_(mask).mul_(options.scale)
        q_in = torch.mul(queries, d.qk_in[:, :chunk], out=buffers["q_in"])
        return Chunks(d.g_last_exp, q_in, torch.mul(keys, d.k_out, out=buffers["k_out"]), A, values, extra=d)

    def prepare_bwd(
        self, block: Block, x: Tensors, options: Options, buffers: Buffers, p: Chunks, d: ChunkGrads, grads: Tensors
    ) -> None:
        decays: TokenDecays = p.extra
        chunk, queries, keys, A = block.chunk, buffers["q"], buffers["k"], buffers["A"]

        # Through the state.
        dq, dk = d.qk_in.mul_(decays.qk_in[:, :chunk]), d.k_out.mul_(decays.k_out)
        dA = torch.bmm(d.out, d.v_new.transpose(1, 2), out=buffers["dA"])
        product = buffers["product"]
        reads = torch.mul(queries, dq, out=product).sum(-1, keepdim=True)
        writes = torch.mul(keys, dk, out=product).sum(-1, keepdim=True)

        # Within the chunk.
        A_dA = torch.mul(dA, A, out=buffers["A_dA"])
        A_dA.diagonal(dim1=1, dim2=2).zero_()  # a token's reading of itself crosses no step
        dg = decay_grad(reads, writes, d.g_last * decays.g_last_exp, A_dA)
        dA.mul_(buffers["decay_mask"]).mul_(options.scale)
        dq.baddbmm_(dA, keys)
        dk.baddbmm_(dA.transpose(1, 2), queries)
        for dx, out in zip((dq, dk, d.v_in, dg), (*grads[:3], grads[3].unsqueeze(-1))):
            block.store(dx, out)

    def plain(self, x: Tensors, scale: float) -> Chunks:
        q, k, v, g = x
        mask, exp_g = sums_between(g).squeeze(-1).exp(), g.cumsum(-2).exp()
        return Chunks(
            exp_g[..., -1:, :], scale * exp_g * q, k * mask[..., -1, :].unsqueeze(-1),
            scale * mask * (q @ k.transpose(-1, -2)), v,
        )  # fmt: skip


class Gla(ChannelFamily, _Sum):
    """``g [B, T, HV, K]``."""

    name = "gla"
    rows = 1
    kernels: ClassVar[Dict[str, Kernel]] = {
        "chunk": Kernel("fla.ops.gla", "chunk_gla"), "recurrent": Kernel("fla.ops.gla", "fused_recurrent_gla"),
    }

    def prepare(self, block: Block, x: Tensors, options: Options, buffers: Buffers) -> Chunks:
        q, k, v, g = x

        def load(left: torch.Tensor, right: torch.Tensor) -> None:
            block.load(q, left, pad=False).mul_(options.scale)
            block.load(k, right)  # no beta makes pads write nothing

        c = self.scaled_tokens(block, g, load, buffers)
        values = v[:, :0] if buffers.backward else block.load(v, buffers["v_in"], pad=False)
        return Chunks(c.g_last, c.left, c.out, c.A, values, extra=c)

    def prepare_bwd(
        self, block: Block, x: Tensors, options: Options, buffers: Buffers, p: Chunks, d: ChunkGrads, grads: Tensors
    ) -> None:
        block.store(d.v_in, grads[2])
        dleft, dright, dg = self.token_grads(block, p.extra, d, buffers)
        for dx, out in zip((dleft.mul_(options.scale), dright, dg), (grads[0], grads[1], grads[3])):
            block.store(dx, out)

    def official_decays(self, call: Call, g: torch.Tensor) -> Dict[str, Any]:
        if call.form == "chunk":
            return {"g": g}
        return {"gk": g, **dict(zip(("gv",), call.channel_decays))}

    def plain(self, x: Tensors, scale: float) -> Chunks:
        q, k, v, g = x
        pair, exp_g, q = sums_between(g).exp(), g.cumsum(-2).exp(), q * scale
        return Chunks(
            exp_g[..., -1, :].unsqueeze(-1), q * exp_g, k * pair[..., -1, :, :], decayed(q, k, pair), v,
        )  # fmt: skip


GLA, SIMPLE_GLA = Gla(), SimpleGla()

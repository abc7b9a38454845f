"""The delta rule with a diagonal-plus-low-rank transition (RWKV-7, arXiv 2503.14456).

With ``u_t = a_t^T S_{t-1}``, a token's reading before it writes, in the notation of `families.channel`::

    left = [scale q; -a],  right = [b; k],  A = [A_qb, A_qk; -A_ab, -A_ak]
    L = -A_ab,  v_in = A_ak v,  k_in = -a',  v_new = u,  k_out = b',  kv = k'^T v,  o_v = A_qk v

Comba and Gated DeltaNet 2 have one key for both writes, ``b = k``. With one kind of writing tokens, ``w_t = v_t +
S_{t-1}^T a_t``, one triangular system serves erasing and writing, half the work of the general rule::

    left = [scale q; -a],  right = [k],  A = [A_qk; -A_ak],  L = -A_ak,  v_in = v,  k_in = -a',  v_new = w,  k_out = k'
"""

from typing import ClassVar, Dict

import torch

from myfla.backends.official import CHUNK_DPLR, RECURRENT_DPLR, Kernel
from myfla.ops._delta.call import Call, Result
from myfla.ops._delta.chunk.decay import sums_between
from myfla.ops._delta.chunk.recurrence import ChunkGrads, Chunks
from myfla.ops._delta.families.base import Options, Tensors
from myfla.ops._delta.families.channel import ChannelFamily, token_grads
from myfla.ops._delta.layout import Block
from myfla.ops._delta.naive import dplr_loop
from myfla.ops._delta.recurrent.step import DplrStep
from myfla.ops._delta.traced.step import dplr_step
from myfla.ops._delta.workspace import BlockShapes, Buffers

__all__ = ["DPLR", "tie_keys"]


class Dplr(ChannelFamily):
    """``q, k, a, b, gk [B, T, H, K]``, ``v [B, T, H, V]``."""

    name = "dplr"
    inputs = ("q", "k", "v", "a", "b", "gk")
    columns = 2
    before = True
    kernels: ClassVar[Dict[str, Kernel]] = {"chunk": CHUNK_DPLR, "recurrent": RECURRENT_DPLR}
    step = DplrStep()
    token_loop = staticmethod(dplr_loop)

    def shapes(self, chunk: int, key: int, value: int) -> BlockShapes:
        shapes, kv = super().shapes(chunk, key, value), {"values": (chunk, value), "kv": (key, value)}
        return shapes._replace(
            forward={**shapes.forward, **kv, "o_v": (chunk, value)},
            backward={**shapes.backward, **kv, "after": (key, value), "written": (2 * chunk, value),
                      "dout_keys": (2 * chunk, key)},
        )  # fmt: skip

    def prepare(self, block: Block, x: Tensors, options: Options, buffers: Buffers) -> Chunks:
        (q, k, v, a, b, gk), chunk = x, block.chunk

        def load(left: torch.Tensor, right: torch.Tensor) -> None:
            block.load(q, left[:, :chunk], pad=False).mul_(options.scale)
            block.load(a, left[:, chunk:], pad=False).mul_(-1.0)
            block.load(b, right[:, :chunk])
            block.load(k, right[:, chunk:])

        c = self.scaled_tokens(block, gk, load, buffers)
        values = block.load(v, buffers["values"], pad=False)
        kv = torch.bmm(c.out[:, chunk:].transpose(1, 2), values, out=buffers["kv"])
        v_in, o_v = values, None
        if not buffers.backward:
            v_in = torch.bmm(c.A[:, chunk:, chunk:], values, out=buffers["v_in"]).neg_()
            o_v = torch.bmm(c.A[:, :chunk, chunk:], values, out=buffers["o_v"])
        A_qb, system = c.A[:, :chunk, :chunk], c.A[:, chunk:, :chunk]
        return Chunks(c.g_last, c.left, c.out[:, :chunk], A_qb, v_in, system, kv, o_v, extra=c)

    def prepare_bwd(
        self, block: Block, x: Tensors, options: Options, buffers: Buffers, p: Chunks, d: ChunkGrads, grads: Tensors
    ) -> None:
        c, chunk, values, dkv = p.extra, block.chunk, buffers["values"], buffers["after"]
        written, dout = buffers["written"], buffers["dout_keys"]
        written[:, :chunk].copy_(d.v_new)
        written[:, chunk:].copy_(values)
        dA = torch.bmm(d.out, written.transpose(1, 2), out=buffers["dA"])
        dout[:, :chunk].copy_(d.k_out)
        dout[:, chunk:].copy_(torch.bmm(values, dkv.transpose(1, 2), out=d.k_out))
        dv = torch.bmm(c.A[:, :, chunk:].transpose(1, 2), d.out, out=values).baddbmm_(c.out[:, chunk:], dkv)
        block.store(dv, grads[2])
        dleft, dright, dgk = token_grads(c, self.before, chunk, dA, d.qk_in, dout, d.g_last, buffers)
        dq, da = dleft[:, :chunk].mul_(options.scale), dleft[:, chunk:].neg_()
        for dx, out in zip((dq, dright[:, chunk:], da, dright[:, :chunk], dgk), (grads[0], grads[1], *grads[3:])):
            block.store(dx, out)

    def traced_step(self, call: Call) -> Result:
        return dplr_step(call)

    def plain(self, x: Tensors, scale: float) -> Chunks:
        q, k, v, a, b, gk = x
        pair, exp_g = sums_between(gk).exp(), gk.cumsum(-2).exp()
        before = torch.cat([torch.zeros_like(pair[..., :1, :, :]), pair[..., :-1, :, :]], dim=-3)
        exp_before = torch.cat([torch.ones_like(exp_g[..., :1, :]), exp_g[..., :-1, :]], dim=-2)
        to_end = pair[..., -1, :, :]
        k_out, keys, q = b * to_end, k * to_end, q * scale
        return Chunks(
            exp_g[..., -1, :].unsqueeze(-1), torch.cat([q * exp_g, -a * exp_before], -2), k_out,
            decayed(q, b, pair), decayed(a, k, before) @ v, -decayed(a, b, before), keys.transpose(-1, -2) @ v,
            decayed(q, k, pair) @ v,
        )  # fmt: skip


class TiedDplr(Dplr):
    """The rule with ``b = k``, with the tensors of `Dplr`; b is not read, and k has the gradient of both."""

    name = "tied_dplr"
    columns = 1

    def shapes(self, chunk: int, key: int, value: int) -> BlockShapes:
        return ChannelFamily.shapes(self, chunk, key, value)

    def prepare(self, block: Block, x: Tensors, options: Options, buffers: Buffers) -> Chunks:
        (q, k, v, a, _, gk), chunk = x, block.chunk

        def load(left: torch.Tensor, right: torch.Tensor) -> None:
            block.load(q, left[:, :chunk], pad=False).mul_(options.scale)
            block.load(a, left[:, chunk:], pad=False).neg_()
            block.load(k, right)

        c = self.scaled_tokens(block, gk, load, buffers)
        values = v[:, :0] if buffers.backward else block.load(v, buffers["v_in"], pad=False)
        return Chunks(c.g_last, c.left, c.out, c.A[:, :chunk], values, c.A[:, chunk:], extra=c)

    def prepare_bwd(
        self, block: Block, x: Tensors, options: Options, buffers: Buffers, p: Chunks, d: ChunkGrads, grads: Tensors
    ) -> None:
        c, chunk = p.extra, block.chunk
        block.store(d.v_in, grads[2])
        dleft, dright, dgk = self.token_grads(block, c, d, buffers)
        dq, da = dleft[:, :chunk].mul_(options.scale), dleft[:, chunk:].neg_()
        for dx, out in zip((dq, dright, da, dgk), (grads[0], grads[1], grads[3], grads[5])):
            block.store(dx, out)

    def plain(self, x: Tensors, scale: float) -> Chunks:
        q, k, v, a, _, gk = x
        return super().plain((q, k, v, a, k, gk), scale)


def decayed(x: torch.Tensor, y: torch.Tensor, decay: torch.Tensor) -> torch.Tensor:
    """``sum_d x_td y_sd decay_tsd``, ``[..., C, C]``."""
    return (x.unsqueeze(-2) * y.unsqueeze(-3) * decay).sum(-1)


def tie_keys(call: Call) -> Call:
    """A call of `DPLR` as a call of `TIED_DPLR` where b and k are the same tensor."""
    q, k, v, a, b, gk = call.x
    return call._replace(family=TIED_DPLR, x=(q, k, v, a, b.detach(), gk))


DPLR, TIED_DPLR = Dplr(), TiedDplr()

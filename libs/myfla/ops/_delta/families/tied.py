"""The rule with a diagonal-plus-low-rank transition where what is added has the key of what is read (Comba, GDN-2).

With ``b = k`` one kind of tokens writes, ``w_t = v_t + S_{t-1}^T a_t``, and one triangular system serves erasing and
writing, half the work of the general rule. In the notation of `chunk.channels`::

    left = [scale q; -a],  right = [k],  A = [A_qk; -A_ak],  L = -A_ak,  v_in = v,  k_in = -a',  v_new = w,  k_out = k'
"""

import torch

from myfla.ops._delta.call import Call
from myfla.ops._delta.chunk.channels import token_grads
from myfla.ops._delta.chunk.contract import ChunkGrads, Chunks
from myfla.ops._delta.families.base import Plan, Tensors
from myfla.ops._delta.families.channel import ChannelFamily
from myfla.ops._delta.families.dplr import DPLR, Dplr
from myfla.ops._delta.layout import Block
from myfla.ops._delta.workspace import BlockShapes, Buffers

__all__ = ["TIED_DPLR", "as_tied"]


class TiedDplr(Dplr):
    """The tensors of `Dplr`; of b nothing is read, and k has the gradient of both."""

    name = "tied_dplr"
    columns = 1

    def shapes(self, chunk: int, key: int, value: int) -> BlockShapes:
        return ChannelFamily.shapes(self, chunk, key, value)

    def prepare(self, block: Block, x: Tensors, plan: Plan, buffers: Buffers) -> Chunks:
        (q, k, v, a, _, gk), chunk = x, block.chunk

        def load(left: torch.Tensor, right: torch.Tensor) -> None:
            block.load(q, left[:, :chunk], pad=False).mul_(plan.scale)
            block.load(a, left[:, chunk:], pad=False).neg_()
            block.load(k, right)

        c = self.weigh(block, gk, load, buffers)
        values = v[:, :0] if buffers.backward else block.load(v, buffers["v_in"], pad=False)
        return Chunks(c.g_last, c.left, c.out, c.A[:, :chunk], values, c.A[:, chunk:], extra=c)

    def prepare_bwd(
        self, block: Block, x: Tensors, plan: Plan, buffers: Buffers, p: Chunks, d: ChunkGrads, grads: Tensors
    ) -> None:
        c, chunk = p.extra, block.chunk
        block.store(d.v_in, grads[2])
        dA = torch.bmm(d.out, d.v_new.transpose(1, 2), out=buffers["dA"])
        dleft, dright, dgk = token_grads(c, self.before, chunk, dA, d.qk_in, d.k_out, d.g_last, buffers)
        dq, da = dleft[:, :chunk].mul_(plan.scale), dleft[:, chunk:].neg_()
        for found, out in zip((dq, dright, da, dgk), (grads[0], grads[1], grads[3], grads[5])):
            block.store(found, out)

    def plain(self, x: Tensors, scale: float) -> Chunks:
        q, k, v, a, _, gk = x
        return super().plain((q, k, v, a, k, gk), scale)


TIED_DPLR = TiedDplr()


def as_tied(call: Call) -> Call:
    """A call of `DPLR` whose b and k are one tensor is one of `TIED_DPLR`; others stay as they are."""
    if call.family is not DPLR or call.x[4] is not call.x[1]:
        return call
    q, k, v, a, b, gk = call.x
    return call._replace(family=TIED_DPLR, x=(q, k, v, a, b.detach(), gk))

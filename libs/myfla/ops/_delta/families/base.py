"""What a family gives to the engine."""

from typing import Any, Callable, ClassVar, Dict, NamedTuple, Sequence, Tuple

import torch

from myfla.backends.official import Kernel
from myfla.ops._delta.call import Call, Result, call_dtype
from myfla.ops._delta.chunk.recurrence import ChunkGrads, Chunks
from myfla.ops._delta.layout import Block
from myfla.ops._delta.recurrent.step import StepRule
from myfla.ops._delta.sequences import each_sequence, first_state
from myfla.ops._delta.workspace import BlockShapes, Buffers

Tensors = Sequence[torch.Tensor]


class Options(NamedTuple):
    """What a family is told besides its tensors."""

    scale: float  # factor on q
    l2norm: bool  # bring q and k to length one first


class Family:
    """How the tokens of one rule become chunks, and gradients of chunks those of tokens.

    A family is one object without state. ``x`` are always its tensors in the order of `inputs`, ``[B, T, heads, ...]``:
    the queries first, the keys second, the values third.

    Attributes:
        name: of the family.
        inputs: names of its tensors.
        largest_chunk: most tokens in a chunk that are worth it.
        traced_chunk: tokens in a chunk of plain operations. It does not follow T, so that one graph serves every T.
        fuses_l2norm: whether `prepare` normalises queries and keys; otherwise they come normalised.
        pads_heads: whether head sizes are padded to whole vectors.
        corrects: whether there is a triangular system, the delta rule's correction.
        kernels: the official functions, by form.
        token_loop: the rule in `_delta.naive`.
        step: the recurrent form.
    """

    name = ""
    inputs: Tuple[str, ...] = ()
    largest_chunk = 64
    traced_chunk = 16
    fuses_l2norm = False
    pads_heads = False
    corrects = True
    kernels: ClassVar[Dict[str, Kernel]] = {}
    token_loop: ClassVar[Callable[..., Result]]
    step = StepRule()

    def shapes(self, chunk: int, key: int, value: int) -> BlockShapes:
        """The tensors that `prepare` and `prepare_bwd` find in their buffers, beside the engine's own."""
        raise NotImplementedError

    def prepare(self, block: Block, x: Tensors, options: Options, buffers: Buffers) -> Chunks:
        """Chunks of one block. In the backward (``buffers.backward``) the system is not asked for."""
        raise NotImplementedError

    def prepare_bwd(
        self, block: Block, x: Tensors, options: Options, buffers: Buffers, p: Chunks, d: ChunkGrads, grads: Tensors
    ) -> None:
        """Gradients of one block's tokens.

        Args:
            block, x, options, buffers: as `prepare`.
            p: what `prepare` gave in this direction.
            d: gradients of it.
            grads: where those of ``x`` go, of the same shapes.
        """
        raise NotImplementedError

    def naive(self, call: Call) -> Result:
        """The specification: `token_loop` over a call whose q, k, g and beta are as the rule has them."""
        x = [t.to(call_dtype(call)) for t in (*per_value_head(*call.x[:3]), *call.x[2:])]

        def run(*given: torch.Tensor) -> Result:
            return self.token_loop(*given[:-1], scale=call.scale, state=given[-1])

        return each_sequence(run, x, first_state(call), call.cu_seqlens)

    def official(self, call: Call) -> Dict[str, Any]:
        """The family's own arguments of its official functions."""
        return dict(zip(self.inputs, call.x))

    def traced_step(self, call: Call) -> Result:
        """One token in operations that a compiler joins."""
        raise NotImplementedError

    def plain(self, x: Tensors, scale: float) -> Chunks:
        """`prepare` in plain differentiable operations.

        Args:
            x: ``[count, B, HV, C, D]`` each; numbers a head are ``[count, B, HV, C, 1]``.
            scale: factor on q.

        Returns:
            tensors with ``[count, B, HV]`` in the place of M.
        """
        raise NotImplementedError


def per_value_head(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
    """q and k with a head of their own for each head of v."""
    group = v.shape[2] // k.shape[2]
    return (q, k) if group == 1 else (q.repeat_interleave(group, dim=2), k.repeat_interleave(group, dim=2))

"""The interface between a family and the engine."""

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
    """Options of a family."""

    scale: float  # factor on q
    l2norm: bool  # bring q and k to length one first


class Family:
    """One rule: prepares chunks from tokens, and gradients of tokens from those of chunks.

    A family is one object without state. ``x`` are always its tensors in the order of `inputs`, ``[B, T, heads, ...]``:
    the queries first, the keys second, the values third.

    Attributes:
        name: of the family.
        inputs: names of its tensors.
        largest_chunk: number of tokens in a chunk beyond which the form gets slower.
        traced_chunk: tokens in a chunk of plain operations. It does not depend on T, so that one graph serves every T.
        fuses_l2norm: whether `prepare` normalises queries and keys; otherwise they are normalised before.
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
        """The tensors that `prepare` and `prepare_bwd` find in their buffers, besides those of the engine."""
        raise NotImplementedError

    def prepare(self, block: Block, x: Tensors, options: Options, buffers: Buffers) -> Chunks:
        """Chunks of one block. In the backward (``buffers.backward``) the triangular system is not needed."""
        raise NotImplementedError

    def prepare_bwd(
        self, block: Block, x: Tensors, options: Options, buffers: Buffers, p: Chunks, d: ChunkGrads, grads: Tensors
    ) -> None:
        """Gradients of one block's tokens.

        Args:
            block, x, options, buffers: as `prepare`.
            p: the result of `prepare` in this direction.
            d: its gradients.
            grads: receive the gradients of ``x``, in the same shapes.
        """
        raise NotImplementedError

    def naive(self, call: Call) -> Result:
        """The specification: `token_loop` for a call whose q, k, g and beta are normalised and activated."""
        x = [t.to(call_dtype(call)) for t in (*per_value_head(*call.x[:3]), *call.x[2:])]

        def run(*given: torch.Tensor) -> Result:
            return self.token_loop(*given[:-1], scale=call.scale, state=given[-1])

        return each_sequence(run, x, first_state(call), call.cu_seqlens)

    def official(self, call: Call) -> Dict[str, Any]:
        """The arguments of the official function in which families differ, by name."""
        return dict(zip(self.inputs, call.x))

    def traced_step(self, call: Call) -> Result:
        """One token, in operations that a compiler fuses."""
        raise NotImplementedError

    def plain(self, x: Tensors, scale: float) -> Chunks:
        """`prepare` in plain differentiable operations.

        Args:
            x: ``[count, B, HV, C, D]`` each; with one number for each head, ``[count, B, HV, C, 1]``.
            scale: factor on q.

        Returns:
            tensors with ``[count, B, HV]`` in the place of M.
        """
        raise NotImplementedError


def per_value_head(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
    """q and k with one head for each head of v."""
    group = v.shape[2] // k.shape[2]
    return (q, k) if group == 1 else (q.repeat_interleave(group, dim=2), k.repeat_interleave(group, dim=2))

"""A rule of this library as one operation of a compiled graph.

``torch.compile`` cannot look into a hand-written backward pass, and what it makes of the same rule in plain operations
is slower and, with gradients, has been wrong (Inductor of PyTorch 2.13 on a scan). So a compiled graph calls the rule
whole: the code that runs eagerly, with its own backward, for every length and for packed sequences of any offsets.
"""

import functools
from typing import Any, Callable, List, Optional, Sequence, Tuple

import torch

from myfla.utils.tracing import compiling, exporting

__all__ = ["graph_op", "takes_graph_ops"]

Rule = Callable[..., Tuple[torch.Tensor, torch.Tensor]]

_custom_op = getattr(torch.library, "custom_op", None) if hasattr(torch, "library") else None
_SHAPES = "Tensor? initial_state, Tensor? cu_seqlens, float scale, ScalarType dtype, ScalarType out_dtype"


def takes_graph_ops() -> bool:
    """Whether a compiler is recording that runs its graph in this process, with this library at hand.

    Example:
        >>> takes_graph_ops()
        False
    """
    return _custom_op is not None and compiling() and not exporting()


def graph_op(name: str, names: Sequence[str], run: Rule) -> Optional[Rule]:
    """The operation ``myfla::name``, differentiable once; None in a PyTorch that cannot have it (before 2.4).

    Args:
        name: of the operation.
        names: of its tensors, ``[B, T, H, ...]`` each; the keys are the second, the values the third.
        run: ``run(*tensors, initial_state, cu_seqlens, scale, dtype, out_dtype) -> (o, final)``, the rule as autograd
            runs it eagerly: o ``[B, T, HV, V]`` in ``out_dtype``, final ``[N, HV, K, V]`` in ``dtype``.

    Returns:
        A function of the arguments of ``run``.
    """
    if _custom_op is None:
        return None
    count = len(names)
    tensors = ", ".join(f"Tensor {x}" for x in names)

    def forward(*given: Any) -> Tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            o, final = run(*given)
        # what a graph gets has the layout that it was promised, and memory of its own
        return o.contiguous(), final.contiguous() if final is not given[count] else final.clone()

    def backward(*given: Any) -> List[torch.Tensor]:
        *call, do, dfinal = given
        leaves = [x.detach().requires_grad_() for x in (*call[:count], call[count]) if x is not None]
        state = leaves[count] if call[count] is not None else None
        with torch.enable_grad():
            outputs = run(*leaves[:count], state, *call[count + 1 :])
        found = torch.autograd.grad(outputs, leaves, (do, dfinal), allow_unused=True)
        return [torch.zeros_like(x) if dx is None else dx.contiguous() for x, dx in zip(leaves, found)]

    op = _custom_op(f"myfla::{name}", forward, mutates_args=(), schema=f"({tensors}, {_SHAPES}) -> (Tensor, Tensor)")
    op_backward = _custom_op(
        f"myfla::{name}_backward", backward, mutates_args=(),
        schema=f"({tensors}, {_SHAPES}, Tensor do, Tensor dfinal) -> Tensor[]",
    )  # fmt: skip

    @op.register_fake
    def _(*given: Any) -> Tuple[torch.Tensor, torch.Tensor]:
        return _promised(given, count)

    @op_backward.register_fake
    def _(*given: Any) -> List[torch.Tensor]:
        return [x.new_empty(x.shape) for x in (*given[:count], given[count]) if x is not None]

    for each in (op, op_backward):
        if hasattr(each, "register_vmap"):  # came with PyTorch 2.5
            each.register_vmap(functools.partial(one_by_one, each))
    op.register_autograd(
        functools.partial(_differentiate, op_backward, count), setup_context=functools.partial(_keep, count)
    )
    return op


def _promised(given: Sequence[Any], count: int) -> Tuple[torch.Tensor, torch.Tensor]:
    """Shapes and dtypes of the results."""
    k, v, (cu_seqlens, _, dtype, out_dtype) = given[1], given[2], given[count + 1 : count + 5]
    rows = v.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    final = v.new_empty((rows, v.shape[2], k.shape[3], v.shape[3]), dtype=dtype)
    return v.new_empty(v.shape, dtype=out_dtype), final


def one_by_one(op: Callable, info: Any, in_dims: Sequence[Optional[int]], *given: Any) -> Any:
    """Under ``torch.func.vmap`` in a compiled graph: a loop."""
    calls = [
        op(*(x if dim is None else x.select(dim, i) for x, dim in zip(given, in_dims)))
        for i in range(info.batch_size)
    ]  # fmt: skip
    kind = list if isinstance(calls[0], list) else tuple
    results = kind(torch.stack(same) for same in zip(*calls))
    return results, kind(0 for _ in results)


def _keep(count: int, ctx: Any, inputs: Sequence[Any], output: Any) -> None:
    ctx.save_for_backward(*inputs[: count + 2])
    ctx.options = inputs[count + 2 :]


def _differentiate(op_backward: Callable, count: int, ctx: Any, do: torch.Tensor, dfinal: torch.Tensor) -> Any:
    found = iter(op_backward(*ctx.saved_tensors, *ctx.options, do, dfinal))
    has = [x is not None for x in ctx.saved_tensors[: count + 1]]
    return (*(next(found) if here else None for here in has), None, *(None for _ in ctx.options))

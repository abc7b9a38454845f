"""Makes an operation of a compiled graph together with its backward, for every form that has one."""

import functools
from typing import Any, Callable, Sequence

import torch

from myfla.ops._delta.version import op_name
from myfla.utils.graph_op import custom_op, one_by_one

__all__ = ["differentiable_op"]


def differentiable_op(
    name: str, inputs: Sequence[str], options: str, results: str, forward: Callable[..., Any],
    backward: Callable[..., Any], fake: Callable[..., Any], residuals: str = "", constants: int = 0,
) -> Any:  # fmt: skip
    """The operation ``myfla::NAME_DIGEST``, whose backward is ``myfla::NAME_backward_DIGEST``.

    Args:
        name: without the digest.
        inputs: schemas of the tensors, such as ``"Tensor q"`` or ``"Tensor? initial_state"``.
        options: schema of what follows them.
        results: schema of the results: o and the final states, then residuals for the backward.
        forward: function of the inputs and options.
        backward: function of inputs, options, residuals, and the gradients of o and of the final states. It returns the
            gradients of all inputs except the constants, without those that are None.
        fake: function that returns tensors in the shapes and dtypes of the results.
        residuals: schema of the residuals as one argument of the backward.
        constants: how many of the last inputs have no gradient.

    Returns:
        the operation; None before PyTorch 2.4, which has no such operations.
    """
    if custom_op is None:
        return None
    count, arguments = len(inputs), ", ".join([*inputs, options])
    given = ", ".join(filter(None, [arguments, residuals, "Tensor do", "Tensor dfinal"]))
    op = custom_op(op_name(name), forward, mutates_args=(), schema=f"({arguments}) -> {results}")
    op_bwd = custom_op(op_name(f"{name}_backward"), backward, mutates_args=(), schema=f"({given}) -> Tensor[]")
    op.register_fake(fake)
    differentiable = count - constants
    op_bwd.register_fake(lambda *given: [x.new_empty(x.shape) for x in given[:differentiable] if x is not None])
    for each in (op, op_bwd):
        if hasattr(each, "register_vmap"):  # came with PyTorch 2.5
            each.register_vmap(functools.partial(one_by_one, each))

    def save(ctx: Any, inputs: Sequence[Any], output: Sequence[torch.Tensor]) -> None:
        ctx.save_for_backward(*inputs[:count], *output[2:])
        ctx.options = inputs[count:]

    def differentiate(ctx: Any, *grads: Any) -> Any:
        tensors, saved = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        dresults = list(grads[0] if isinstance(grads[0], (list, tuple)) else grads)[:2]
        if any(dx is None for dx in dresults):
            like = fake(*tensors, *ctx.options)
            dresults = [torch.zeros_like(x) if dx is None else dx for x, dx in zip(like, dresults)]
        kept = [list(saved)] if residuals.startswith("Tensor[]") else saved
        found = iter(op_bwd(*tensors, *ctx.options, *kept, *dresults))
        of_inputs = [None if x is None else next(found) for x in tensors[:differentiable]]
        return (*of_inputs, *[None] * (constants + len(ctx.options)))

    op.register_autograd(differentiate, setup_context=save)
    return op

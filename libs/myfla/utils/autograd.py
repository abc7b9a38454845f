"""Common code of hand-written autograd functions: when to record, and second derivatives."""

from typing import Any, Callable, NamedTuple, Optional, Sequence, Tuple

import torch

from myfla.utils.tracing import tracing


def records(*tensors: Optional[torch.Tensor]) -> bool:
    """Whether autograd would record an operation on these tensors; None counts as a constant.

    Example:
        >>> records(torch.zeros(1), None)
        False
    """
    if torch.is_grad_enabled():
        for t in tensors:
            if t is not None and t.requires_grad:
                return True
    return False


def backward_through(
    formula: Callable[..., Any], inputs: Sequence[Optional[torch.Tensor]], needs: Sequence[bool],
    grads: Sequence[Optional[torch.Tensor]],
) -> Tuple[Optional[torch.Tensor], ...]:
    """The backward pass as autograd itself would do it, recorded so that it can be differentiated again.

    A hand-written backward reuses buffers and saved intermediates that autograd does not record, so its result cannot
    be differentiated. With ``create_graph=True``, where ``torch.is_grad_enabled()`` is true in the backward, it calls
    this function instead.

    Args:
        formula: the forward pass in plain differentiable operations, called with ``inputs``.
        inputs: the saved inputs of the forward pass; None for a missing one.
        needs: for each input, whether its gradient is requested.
        grads: gradients of the formula's outputs; None counts as zero.

    Returns:
        For each input its gradient, or None.
    """
    with torch.enable_grad():
        outputs = formula(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    pairs = [(out, grad) for out, grad in zip(outputs, grads) if grad is not None]
    wanted = [tensor if need else None for tensor, need in zip(inputs, needs)]
    leaves = [tensor for tensor in wanted if tensor is not None]
    found = iter(torch.autograd.grad(
        [out for out, _ in pairs], leaves, [grad for _, grad in pairs], create_graph=True, allow_unused=True))
    return tuple(None if tensor is None else next(found) for tensor in wanted)


class _Rule(NamedTuple):
    forward: Callable[..., Any]
    backward: Callable[..., Any]
    formula: Callable[..., Any]
    linear: Optional[int]


def hand_differentiated(
    forward: Callable[..., Any], backward: Callable[..., Any], formula: Optional[Callable[..., Any]] = None,
    linear: Optional[int] = None,
) -> Callable[..., Any]:  # fmt: skip
    """A function of tensors with a backward pass written by hand.

    Args:
        forward: function of the inputs that returns one result or a tuple. It may reuse buffers.
        backward: ``backward(grad, *inputs)``, which returns the gradient of every input in its shape and dtype; for a
            tuple of results, ``grad`` is a tuple.
        formula: `forward` in plain differentiable operations, for recorded calls (`myfla.utils.tracing`) and second
            derivatives; by default `forward`.
        linear: the number of an input that is only added to the results, so that its values need not be kept.

    Example:
        >>> double = hand_differentiated(lambda x: 2 * x, lambda grad, x: (2 * grad,))
        >>> x = torch.ones(1, requires_grad=True)
        >>> torch.autograd.grad(double(x), x)[0]
        tensor([2.])
    """
    rule = _Rule(forward, backward, formula or forward, linear)

    def run(*inputs: torch.Tensor) -> Any:
        if tracing():
            return rule.formula(*inputs)
        return _HandDifferentiated.apply(rule, *inputs) if torch.is_grad_enabled() else rule.forward(*inputs)

    return run


class _HandDifferentiated(torch.autograd.Function):
    """Arguments: a rule, and its inputs."""

    @staticmethod
    def forward(ctx: Any, rule: _Rule, *inputs: torch.Tensor) -> Any:
        ctx.rule = rule
        # For a linear input a zero in its shape and dtype, in the memory of one number.
        kept = [x.new_zeros(()).expand(x.shape) if i == rule.linear else x for i, x in enumerate(inputs)]
        ctx.save_for_backward(*kept)
        return rule.forward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        rule, inputs = ctx.rule, ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph
            given = [x.requires_grad_() if i == rule.linear else x for i, x in enumerate(inputs)]
            return (None, *backward_through(rule.formula, given, ctx.needs_input_grad[1:], grads))
        return (None, *rule.backward(grads[0] if len(grads) == 1 else grads, *inputs))

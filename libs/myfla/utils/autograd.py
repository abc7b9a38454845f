"""What hand-written autograd functions share: when to record, and second derivatives."""

from typing import Any, Callable, Optional, Sequence, Tuple

import torch


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

    A hand-written backward reuses buffers and saved intermediates that autograd knows nothing of, so its result
    cannot be differentiated. Such a backward calls this instead when it runs under ``create_graph=True``, which it
    sees as ``torch.is_grad_enabled()``.

    Args:
        formula: the forward pass in plain differentiable operations, called with ``inputs``.
        inputs: the tensors that the forward pass was given, as saved; None where one was left out.
        needs: for each input, whether its gradient is asked for.
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

"""Decoding steps, decided once: a step is one token for each row that has a state, in plain execution on a CPU.

What an op's checks find, who computes and how the numbers lie depend on nothing but what `step_key` holds. So the first
call of its kind goes the whole way, through all checks, and leaves a `Step` for the next ones. A call that is refused
leaves none.
"""

from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import torch
from torch import nn

from myfla.utils.native import native_package
from myfla.utils.tracing import undisturbed

__all__ = ["MOST", "Key", "Step", "find_step", "forget_steps", "keep_step", "layout_key", "step_key"]

Key = Tuple[Any, ...]

Step = Callable[[Tuple[Any, ...], Any, Any], Tuple[torch.Tensor, Optional[torch.Tensor]]]
"""``step(x, activation, state)``, of tensors as `Call` has them: o, and the final states where they are wanted."""

MOST = 256
"""Steps that are kept at most; then they are planned again."""

_TENSORS = (torch.Tensor, nn.Parameter)
_STRIDED, _CPU = torch.strided, torch.device("cpu")
_PLAIN = frozenset((bool, int, float, str, type(None)))
_steps: Dict[Optional[Key], Any] = {}

find_step = _steps.get
"""The step of a key, or None; None for None."""


def step_key(
    who: str, options: Sequence[Any], state: Any, cu_seqlens: Any, q: Any, *tensors: Any
) -> Optional[Key]:
    """All that a decoding step depends on but its numbers; None for any other call, or where somebody watches.

    Args:
        who: the op.
        options: its other arguments.
        state: the initial state.
        cu_seqlens: as the op was given it.
        q: the op's first tensor, ``[B, T, ...]``.
        tensors: its other tensors, None for one that was left out.

    Example:
        >>> x, state = torch.zeros(1, 1, 2, 4), torch.zeros(1, 2, 4, 4)
        >>> step_key("op", (0.5,), state, None, x) == step_key("op", (0.5,), state + 1, None, x + 1)
        True
        >>> step_key("op", (0.5,), state, None, torch.zeros(1, 2, 2, 4)) is None
        True
    """
    if state is None or cu_seqlens is not None or type(q) is not torch.Tensor or q.dim() != 4 or q.shape[1] != 1:
        return None
    return layout_key(who, options, state, q, *tensors)


def layout_key(who: str, options: Sequence[Any], *tensors: Any) -> Optional[Key]:
    """All that a computation on the CPU depends on but the numbers in its tensors; None where somebody watches.

    Args:
        who: its name.
        options: numbers, strings and None.
        tensors: all that it reads, None for one that was left out.
    """
    if not undisturbed() or not _PLAIN.issuperset(map(type, options)):
        return None
    graph = torch.is_grad_enabled()
    key: List[Any] = [who, native_package(), *options]
    for x in tensors:
        if x is None:
            key.append(None)
        elif type(x) in _TENSORS and x.layout is _STRIDED and x.device == _CPU and not (graph and x.requires_grad):
            key += (x.dtype, x.shape, x.stride(), x.is_neg())
        else:
            return None
    return tuple(key)


def keep_step(key: Key, step: Callable[..., Any]) -> None:
    """Remember what computes all calls of a key. It must hold no tensor of the call that it was planned for."""
    if len(_steps) >= MOST:
        _steps.clear()
    _steps[key] = step


def forget_steps() -> None:
    """Plan all steps again: for who changes what they are planned from."""
    _steps.clear()

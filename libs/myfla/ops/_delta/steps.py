"""A cache of plans for decoding steps. A step is one token for each row that has a state, in plain execution on a CPU.

The result of an op's checks, the back end and the layout of the numbers depend only on what `step_key` contains. The
first call with a key goes through all checks and stores a `Step`, which computes the following ones. A call that fails
its checks stores none.
"""

from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import torch
from torch import nn

from myfla.utils.native import native_package
from myfla.utils.tracing import undisturbed

__all__ = ["MOST", "Key", "Step", "find_step", "forget_steps", "keep_step", "layout_key", "step_key"]

Key = Tuple[Any, ...]

Step = Callable[[Tuple[Any, ...], Any, Any], Tuple[torch.Tensor, Optional[torch.Tensor]]]
"""``step(x, activation, state)``, with tensors as in `Call`: o, and the final states if requested."""

MOST = 256
"""Largest number of steps that are kept; beyond it all are planned again."""

_TENSORS = (torch.Tensor, nn.Parameter)
_STRIDED, _CPU = torch.strided, torch.device("cpu")
_PLAIN = frozenset((bool, int, float, str, type(None)))
_steps: Dict[Key, Any] = {}


def find_step(key: Optional[Key]) -> Any:
    """The step of a key, or None. Without a key nothing is looked up: a compiler that reads this could not follow."""
    return None if key is None else _steps.get(key)


def step_key(
    who: str, options: Sequence[Any], state: Any, cu_seqlens: Any, q: Any, *tensors: Any
) -> Optional[Key]:
    """Everything that a decoding step depends on, except its numbers; None for other calls, and where operations are
    recorded or profiled.

    Args:
        who: the op.
        options: its other arguments.
        state: the initial state.
        cu_seqlens: as given to the op.
        q: the op's first tensor, ``[B, T, ...]``.
        tensors: its other tensors, None for a missing one.

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
    """Everything that a computation on the CPU depends on, except the numbers in its tensors; None where operations are
    recorded or profiled.

    Args:
        who: its name.
        options: numbers, strings and None.
        tensors: all that it reads, None for a missing one.
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
    """Store the step of a key. It must hold no tensor of the call from which it was planned."""
    if len(_steps) >= MOST:
        _steps.clear()
    _steps[key] = step


def forget_steps() -> None:
    """Remove all steps, which are then planned again; to be called where something changes on which plans depend."""
    _steps.clear()

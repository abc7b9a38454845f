"""A cache of plans for calls of the operations, in plain execution on a CPU.

The result of an op's checks, the back end, the cut into chunks and the layout of the numbers depend only on what
`call_key` contains. The first call with a key goes through all checks and stores a `Run`, which computes the following
ones. A call that fails its checks stores none. The offsets of packed sequences are numbers, and are checked each time.
"""

from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import torch
from torch import nn

from myfla.utils.native import native_package
from myfla.utils.tracing import undisturbed

__all__ = ["MOST", "Key", "Run", "call_key", "find_plan", "forget_plans", "keep_plan", "layout_key"]

Key = Tuple[Any, ...]

Run = Callable[..., Tuple[torch.Tensor, Optional[torch.Tensor]]]
"""``run(x, activation, state, cu_seqlens)``, with tensors as in `Call`: o, and the final states if requested."""

MOST = 256
"""Largest number of plans that are kept; beyond it all are made again."""

_TENSORS = (torch.Tensor, nn.Parameter)
_STRIDED, _CPU = torch.strided, torch.device("cpu")
_PLAIN = frozenset((bool, int, float, str, type(None)))
_plans: Dict[Key, Any] = {}


def find_plan(key: Optional[Key]) -> Any:
    """The plan of a key, or None. Without a key nothing is looked up: a compiler that reads this could not follow."""
    return None if key is None else _plans.get(key)


def call_key(who: str, options: Sequence[Any], *tensors: Any) -> Optional[Key]:
    """`layout_key` of a call that autograd may record.

    Example:
        >>> x = torch.zeros(1, 1, 2, 4)
        >>> call_key("op", (0.5,), x) == call_key("op", (0.5,), x + 1)
        True
        >>> call_key("op", (0.5,), x) == call_key("op", (0.5,), x.clone().requires_grad_())
        False
    """
    return layout_key(who, options, *tensors, recorded=True)


def layout_key(who: str, options: Sequence[Any], *tensors: Any, recorded: bool = False) -> Optional[Key]:
    """Everything that a computation on the CPU depends on, except the numbers in its tensors; None where operations are
    traced or profiled.

    Args:
        who: its name.
        options: numbers, strings and None.
        tensors: all that it reads, None for a missing one.
        recorded: whether there is a key, another one, also where autograd records; by default there is none.
    """
    if not undisturbed() or not _PLAIN.issuperset(map(type, options)):
        return None
    graph, grads = torch.is_grad_enabled(), False
    key: List[Any] = [who, native_package(), torch.get_num_threads(), *options]
    for x in tensors:
        if x is None:
            key.append(None)
        elif type(x) in _TENSORS and x.layout is _STRIDED and x.device == _CPU:
            grads = grads or (graph and x.requires_grad)
            key += (x.dtype, x.shape, x.stride(), x.is_neg())
        else:
            return None
    if grads and not recorded:
        return None
    key.append(grads)
    return tuple(key)


def keep_plan(key: Key, run: Callable[..., Any]) -> None:
    """Store the plan of a key. It must hold no tensor of the call from which it was made."""
    if len(_plans) >= MOST:
        _plans.clear()
    _plans[key] = run


def forget_plans() -> None:
    """Remove all plans, which are then made again; to be called where something changes on which they depend."""
    _plans.clear()

"""A compiled function for calls of every kind: as many copies of its code as they need.

PyTorch keeps what it compiles with a function's code, up to ``torch._dynamo.config.recompile_limit`` graphs (8), and
then refuses each call that would need another one. The limit is the user's and stays as it is. Here it holds for a copy
of the code: calls with the same options share one, which sees nothing new but lengths and numbers and soon takes them
as variables; where these need more graphs than that, they get the next copy. No call is refused, and none is computed
uncompiled.
"""

from types import FunctionType
from typing import Any, Callable, Dict, Hashable, Sequence, Tuple

import torch

__all__ = ["Copies"]

REMEMBERED = 1024
"""Calls of which is known which copy is theirs. Every other goes to the newest one of its kind."""


class Copies:
    """A function compiled as one graph, to be called in any number of ways.

    Args:
        function: of positional arguments: tensors, numbers, options, and tuples and lists of these.
        **how: arguments of ``torch.compile``.

    Example:
        >>> Copies(lambda x: x + 1)
        Copies(<lambda>, 0 kinds of calls)
    """

    def __init__(self, function: Callable[..., Any], **how: Any) -> None:
        self._function, self._how = function, how
        self._newest: Dict[Hashable, Callable[..., Any]] = {}  # by kind
        self._known: Dict[Hashable, Callable[..., Any]] = {}  # by call

    def __call__(self, *given: Any) -> Any:
        call = (torch.is_grad_enabled(), _describe(given))
        copy = self._known.get(call)
        if copy is None:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            copy = self._known[call] = self._newest.get(_kind(call)) or self._begin(call)
        try:
            return copy(*given)
        except Exception as error:
            if not _is_full(error):
                raise
        return self._begin(call)(*given)

    def __repr__(self) -> str:
        return f"Copies({self._function.__name__}, {len(self._newest)} kinds of calls)"

    def _begin(self, call: Tuple[Any, ...]) -> Callable[..., Any]:
        """The next copy: for this call, and all to come that are new and of its kind."""
        f = self._function
        code = FunctionType(f.__code__.replace(), f.__globals__, f.__name__, f.__defaults__, f.__closure__)
        copy = torch.compile(code, fullgraph=True, **self._how)
        self._newest[_kind(call)] = self._known[call] = copy
        return copy


def _describe(given: Sequence[Any]) -> Tuple[Any, ...]:
    """What a graph may depend on."""
    return tuple([
        x if x is None
        else (x.dtype, x.device, x.requires_grad, x.shape) if isinstance(x, torch.Tensor)
        else _describe(x) if isinstance(x, (tuple, list))
        else x
        for x in given
    ])  # fmt: skip


def _kind(call: Sequence[Any]) -> Tuple[Any, ...]:
    """The same without what differs between calls of one model: numbers, and the first two sizes of a tensor."""
    return tuple([
        (len(x), *x[2:]) if isinstance(x, torch.Size)
        else _kind(x) if isinstance(x, tuple)
        else type(x) if type(x) in (int, float)
        else x
        for x in call
    ])  # fmt: skip


def _is_full(error: Exception) -> bool:
    """Whether a copy may not have another graph: told by an exception's name since PyTorch 2.5, by its text before."""
    kind, first = type(error), str(error).partition("\n")[0]
    told = "LimitHit" in kind.__name__ or "LimitExceeded" in kind.__name__
    return kind.__module__ == "torch._dynamo.exc" and (told or first.endswith("cache_size_limit reached"))

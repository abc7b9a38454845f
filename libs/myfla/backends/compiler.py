"""``torch.compile`` as a backend: whether it works here, and compiled functions, each made once.

A function is compiled for sizes that vary (``dynamic=True``), so that calls of one kind soon share one graph. Another
dtype, rank, option, None for a tensor, a size of one, or gradients need another graph. PyTorch keeps 8 for a function
(``torch._dynamo.config.recompile_limit``, ``cache_size_limit`` before 2.6); this setting of the user is not changed.
Here a function may have `GRAPHS`, or as many as the user allows if that is more. A call that would need one more graph
is computed uncompiled, with the same result up to rounding, and with a warning, once for each function.
"""

import functools
import importlib
import inspect
import logging
from typing import Any, Callable, ContextManager, Optional

import torch

from myfla.utils.tracing import compiling

__all__ = ["Compiled", "compiled", "compiler_problem"]

GRAPHS = 64
"""Largest number of compiled graphs for one function. A model needs only a few; the limit stops endless compiling."""

_log = logging.getLogger(__name__)


@functools.lru_cache(maxsize=None)
def compiler_problem(device: str) -> Optional[str]:
    """Why nothing can be compiled for a device type, or None. Found by compiling one addition, once in a process."""
    if not hasattr(torch, "compile") or not hasattr(getattr(torch, "compiler", None), "is_compiling"):
        return f"torch.compile as used here came with PyTorch 2.3, and this is {torch.__version__}"
    try:
        torch.compile(_probe, fullgraph=True)(torch.ones(2, device=device))
    except Exception as error:  # no C++ compiler, no Triton, a Python that is too new, ...
        return f"torch.compile does not work on {device}: {type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return None


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function compiled as one graph for calls of every kind (`Compiled`); inside another compiler, itself."""
    return function if compiling() else _compiled(function)


class Compiled:
    """A function compiled as one graph; it runs uncompiled if PyTorch's limit of graphs is reached.

    Args:
        function: what to compile.
        **how: further arguments of ``torch.compile``.

    Example:
        >>> Compiled(lambda x: x + 1)
        Compiled(<lambda>)
    """

    def __init__(self, function: Callable[..., Any], **how: Any) -> None:
        self._function, self._limit_told = function, False
        if "recompile_limit" in inspect.signature(torch.compile).parameters:  # the function's own
            how.setdefault("recompile_limit", GRAPHS)
        self._compiled = torch.compile(function, fullgraph=True, dynamic=True, **how)

    def __call__(self, *given: Any, **named: Any) -> Any:
        try:
            return self._compiled(*given, **named)
        except Exception as error:  # raised before anything has run
            if not _is_full(error):
                raise
        try:
            with _more_graphs():
                return self._compiled(*given, **named)
        except Exception as error:
            if not _is_full(error):
                raise
        if not self._limit_told:
            self._limit_told = True
            _log.warning(
                "%s: more kinds of calls than the %d graphs that are compiled for one function; further calls are "
                "computed uncompiled, which is slower (raise torch._dynamo.config.recompile_limit, or use fewer "
                "dtypes, options and shapes)", self._function.__name__, GRAPHS,
            )  # fmt: skip
        return self._function(*given, **named)

    def __repr__(self) -> str:
        return f"Compiled({self._function.__name__})"


@functools.lru_cache(maxsize=None)
def _compiled(function: Callable[..., Any]) -> Compiled:
    return Compiled(function)


def _more_graphs() -> ContextManager[None]:
    """PyTorch's limit raised to `GRAPHS` while one of these functions is compiled."""
    config = importlib.import_module("torch._dynamo.config")
    name = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    return config.patch(**{name: max(GRAPHS, getattr(config, name))})


def _is_full(error: Exception) -> bool:
    """Whether a function may not have another graph: told by an exception's name since PyTorch 2.5, by its text
    before."""
    kind, first = type(error), str(error).partition("\n")[0]
    told = "LimitHit" in kind.__name__ or "LimitExceeded" in kind.__name__
    return kind.__module__ == "torch._dynamo.exc" and (told or first.endswith("cache_size_limit reached"))


def _probe(x: torch.Tensor) -> torch.Tensor:
    return x + 1

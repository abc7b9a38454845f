"""``torch.compile`` as a backend: whether it works here, and compiled functions, each made once."""

import functools
from typing import Any, Callable, Optional

import torch

from myfla.utils.tracing import compiling

__all__ = ["compiled", "compiler_problem"]


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
    """A function compiled as one graph; inside another compiler, the function itself."""
    return function if compiling() else _compiled(function)


@functools.lru_cache(maxsize=None)
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, fullgraph=True)


def _probe(x: torch.Tensor) -> torch.Tensor:
    return x + 1

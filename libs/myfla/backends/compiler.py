"""``torch.compile`` as a backend: whether it works here, and compiled functions, each made once."""

import functools
import importlib
from typing import Any, Callable, Optional

import torch

from myfla.backends.copies import Copies
from myfla.utils.tracing import compiling

__all__ = ["compiled", "compiler_problem", "joins_products"]


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


def joins_products(device: str) -> bool:
    """Whether one kernel is to be made of products of matrices and what is done with them before and after.

    PyTorch's own setting asks for it, ``torch._inductor.config.triton.native_matmul = True``: its compiler's way
    of generating such kernels is young, so nobody gets them unasked.
    """
    if device != "cuda" or compiler_problem(device) is not None:
        return False
    return bool(getattr(importlib.import_module("torch._inductor.config").triton, "native_matmul", False))


def compiled(function: Callable[..., Any], products: bool = False) -> Callable[..., Any]:
    """A function compiled as one graph, for calls of every kind (`Copies`); inside another compiler, itself.

    Args:
        products: have its products of matrices generated too, where `joins_products`. Without, they are called.
    """
    return function if compiling() else _compiled(function, products)


@functools.lru_cache(maxsize=None)
def _compiled(function: Callable[..., Any], products: bool) -> Copies:
    return Copies(function, options={"triton.native_matmul": True} if products else None)


def _probe(x: torch.Tensor) -> torch.Tensor:
    return x + 1

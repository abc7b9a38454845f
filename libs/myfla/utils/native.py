"""The compiled CPU kernels of the distribution `myfla-native`, where it is installed; see `docs/native.md`.

This library works without them. A function with a compiled form calls `native` each time, and computes in PyTorch if it
returns None.
"""

import functools
import importlib
import importlib.util
from typing import Any, Optional, Tuple

import torch
from torch import nn
from torch.autograd import forward_ad

from myfla.utils.tracing import compiling, tracing

__all__ = ["INTERFACE", "are_dense", "graph_takes_native", "missing_native", "native", "native_level", "native_package",
           "why_not_native"]  # fmt: skip

INTERFACE = 7
"""The interface number that these files support. A `myfla_native` with another number is not used."""

_FORMATS = (torch.float32, torch.bfloat16, torch.float16)
_TENSORS = (torch.Tensor, nn.Parameter)
_STRIDED = torch.strided
_modes = getattr(torch._C, "_len_torch_dispatch_stack", None)  # came with PyTorch 2.0


def native(*tensors: Optional[torch.Tensor]) -> Any:
    """The package `myfla_native` if it can compute with these tensors now, else None.

    Args:
        tensors: all floating-point tensors of a call; None counts as nothing.

    Example:
        >>> native(torch.zeros(2, dtype=torch.float64)) is None
        True
    """
    package = None if compiling() else _installed()[0]  # a compiler would record the search for it
    if package is None or _watched() is not None:
        return None
    for x in tensors:  # `_is_plain`, written out: this runs for every token
        if x is not None and (
            type(x) not in _TENSORS
            or x.dtype not in _FORMATS
            or x.device.type != "cpu"  # `is_cpu` came with PyTorch 1.13
            or x.layout is not _STRIDED
            or x.is_neg()
        ):
            return None
    return package


def are_dense(dtype: torch.dtype, *tensors: torch.Tensor) -> bool:
    """Whether `native` supports these tensors, and all have this dtype and no gaps.

    Example:
        >>> are_dense(torch.float32, torch.zeros(2, 3)), are_dense(torch.float32, torch.zeros(2, 3).t())
        (True, False)
    """
    if dtype not in _FORMATS:
        return False
    for x in tensors:
        if type(x) not in _TENSORS or x.dtype is not dtype or x.device.type != "cpu":
            return False
        if not x.is_contiguous() or x.is_neg():
            return False
    return True


def graph_takes_native(*tensors: Optional[torch.Tensor]) -> bool:
    """Whether the compiled kernels can take part in a graph that ``torch.compile`` records from these tensors.

    Example:
        >>> graph_takes_native(torch.zeros(2, dtype=torch.float64))
        False
    """
    for x in tensors:
        if x is not None and (x.device.type != "cpu" or x.dtype not in _FORMATS):
            return False
    return _is_installed()


def _is_installed() -> bool:
    return _installed()[0] is not None


# What torch.compiler.assume_constant_result sets, without importing the compiler, which then calls the function.
setattr(_is_installed, "_dynamo_marked_constant", True)


def why_not_native(*tensors: Optional[torch.Tensor]) -> Optional[str]:
    """The reason why `native` returns None; None if it returns the package.

    Example:
        >>> why_not_native(torch.zeros(2, dtype=torch.float64)) is None
        False
    """
    missing = missing_native() or _watched()
    if missing is not None:
        return missing
    for x in tensors:
        if x is None or _is_plain(x):
            continue
        if x.device.type != "cpu":
            return f"the compiled kernels run on CPUs, and the tensors are on {x.device.type}"
        if x.dtype not in _FORMATS:
            return f"the compiled kernels have float32, bfloat16 and float16, and this is {x.dtype}"
        return f"the compiled kernels take plain tensors, and this is a {type(x).__name__} with layout {x.layout}"
    return None


def missing_native() -> Optional[str]:
    """The reason why there are no compiled kernels in this process, or None; not searched for while a compiler
    records."""
    return None if compiling() else _installed()[1]


def native_package() -> Any:
    """The package for every call, for the shapes of a recorded one; only if kernels are installed."""
    return _installed()[0]


def native_level() -> str:
    """The compiled variant that is in use, such as ``avx512``; only if kernels are installed."""
    return _installed()[0].level()


@functools.lru_cache(maxsize=None)
def _installed() -> Tuple[Any, Optional[str]]:
    """The package, or why it cannot be used. A library of another platform may raise anything when it is loaded."""
    spec = importlib.util.find_spec("myfla_native")
    if spec is None or spec.origin is None:  # without an origin: a folder that happens to have this name
        return None, "myfla-native is not installed; pip install myfla-native"
    try:
        package = importlib.import_module("myfla_native")
        found = package.INTERFACE
    except Exception as error:  # ImportError, OSError of the loader, AttributeError of an older library, ...
        return None, f"myfla-native does not import: {type(error).__name__}: {error}"
    if found != INTERFACE:
        return None, f"myfla-native has interface {found} and {INTERFACE} is needed; install the version of this myfla"
    return package, None


def _watched() -> Optional[str]:
    """What records plain operations, and could not record a compiled kernel; None if nothing does."""
    if tracing():
        return "a compiler, an exporter or a transform of torch.func records this call"
    if _modes is not None and _modes():
        return "a torch dispatch mode watches this call"
    if forward_ad._current_level >= 0:
        return "forward-mode differentiation is on"
    return None


def _is_plain(x: torch.Tensor) -> bool:
    return (
        type(x) in _TENSORS
        and x.dtype in _FORMATS
        and x.device.type == "cpu"
        and x.layout is _STRIDED
        and not x.is_neg()
    )

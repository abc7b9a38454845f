"""Whether a compiler, an exporter or a function transform is active, instead of plain eager execution.

The hand-written forward and backward passes reuse buffers and read lengths and masks on the host, so they cannot be
recorded. **The rule**: inside ``torch.compile``, ``torch.export``, ``torch.jit.trace``, ``make_fx``, a
``FakeTensorMode`` and the transforms of ``torch.func``, and for tensors on the device ``meta``, every function of this
library computes its formula in plain operations, without conditions on the values of a tensor. The results are equal up
to rounding. The one exception: a rule over many tokens is a separate operation in a compiled graph
(`myfla.utils.graph_op`).
"""

import functools
from typing import Any, Optional

import torch
from torch.autograd import forward_ad

__all__ = ["compiling", "exporting", "is_one", "tracing", "transforming", "undisturbed"]

_compiler = getattr(torch, "compiler", None)
_is_compiling = getattr(_compiler, "is_compiling", None)
# torch.compiler.is_exporting() itself is true in every compiled graph of PyTorch 2.11; the flag behind it is not.
# Before this flag (2.6), only torch.export set the flag of compilation, and only if it is not strict.
_export_flag = "_is_exporting_flag" if hasattr(_compiler, "_is_exporting_flag") else "_is_compiling_flag"
_functorch = getattr(torch._C, "_functorch", None)
_transform = getattr(_functorch, "peek_interpreter_stack", None)
_mode = getattr(torch._C, "_get_dispatch_mode", None)  # PyTorch 2.1
_keys = getattr(torch._C, "_TorchDispatchModeKey", None)
_modes = getattr(torch._C, "_len_torch_dispatch_stack", None)  # PyTorch 2.0
_by_device = hasattr(torch, "get_autocast_dtype")  # from this version on is_autocast_enabled takes a device
_autocast = functools.partial(torch.is_autocast_enabled, "cpu") if _by_device else torch.is_autocast_cpu_enabled
_RECORDERS = tuple(getattr(_keys, name) for name in ("FAKE", "PROXY") if hasattr(_keys, name))
_compiler_knows_transforms = hasattr(getattr(torch, "library", None), "register_vmap")  # PyTorch 2.5


def compiling() -> bool:
    """Whether ``torch.compile`` or ``torch.export`` is recording; always False before PyTorch 2.3, which has no such
    query.

    Example:
        >>> compiling()
        False
    """
    return _is_compiling is not None and _is_compiling()


def exporting() -> bool:
    """Whether ``torch.export`` is recording: the graph is for other runtimes, so it has only operations that they
    support.

    In PyTorch 2.4 and 2.5 a strict export cannot be distinguished from ``torch.compile``.

    Example:
        >>> exporting()
        False
    """
    return getattr(_compiler, _export_flag, False)


def is_one(size: Any) -> bool:
    """Whether a size is known to be 1; False for a size that an exported graph leaves variable.

    Example:
        >>> is_one(1), is_one(2)
        (True, False)
    """
    return (isinstance(size, int) or not exporting()) and bool(size == 1)


def transforming() -> bool:
    """Whether a transform of ``torch.func`` (vmap, grad, jvp, ...) is active.

    The compiler of PyTorch 2.4 and older cannot query this: there it is False in a compiled graph.

    Example:
        >>> transforming()
        False
    """
    if _transform is None or (not _compiler_knows_transforms and compiling()):
        return False
    return _transform() is not None


def tracing(*tensors: Optional[torch.Tensor]) -> bool:
    """Whether plain operations are needed, by the rule at the top of this file.

    Args:
        tensors: those on which a condition would depend; one on the device ``meta``, without values, is sufficient.

    Example:
        >>> tracing(), tracing(torch.zeros(1)), tracing(torch.zeros(1, device="meta"))
        (False, False, True)
    """
    for x in tensors:
        if x is not None and x.is_meta:
            return True
    if _is_compiling is not None and _is_compiling():
        return True
    if (_transform is not None and _transform() is not None) or torch._C._get_tracing_state() is not None:
        return True
    if _mode is not None:
        for key in _RECORDERS:
            if _mode(key) is not None:
                return True
    return False


def undisturbed() -> bool:
    """Whether this is plain eager execution on a CPU, in which nothing records operations or changes their dtypes.

    False with `tracing`, any dispatch mode, forward-mode differentiation or autocast.

    Example:
        >>> with torch.autocast("cpu", torch.bfloat16):
        ...     undisturbed()
        False
    """
    return not (
        (_is_compiling is not None and _is_compiling())
        or (_transform is not None and _transform() is not None)
        or torch._C._get_tracing_state() is not None
        or (_modes is not None and _modes() > 0)  # including those of fake tensors and recorders
        or forward_ad._current_level >= 0
        or _autocast()
    )

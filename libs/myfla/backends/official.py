"""The official kernels: imported when they are needed, and where they are known to be correct."""

import functools
import importlib
import importlib.util
import re
from typing import Any, Callable, NamedTuple, Optional, Tuple

import torch

__all__ = ["Kernel", "import_problem", "kernel", "problem", "unsound_gated_backward"]

OLDEST = (0, 6)
"""Older releases ignore unknown keywords, such as ``use_gate_in_kernel``, and give wrong results without an error."""
LARGEST_KEY = 256


class Kernel(NamedTuple):
    """An official function.

    Attributes:
        module, name: where it is.
        backward: whether it has a backward pass.
        gated: whether that pass is the one with a decay for each head, which is wrong on some GPUs.
        any_size: whether keys may be longer than `LARGEST_KEY`.
    """

    module: str
    name: str
    backward: bool = True
    gated: bool = False
    any_size: bool = False


CHUNK_GATED_DELTA_RULE = Kernel("fla.ops.gated_delta_rule", "chunk_gated_delta_rule", gated=True)
RECURRENT_GATED_DELTA_RULE = Kernel("fla.ops.gated_delta_rule", "fused_recurrent_gated_delta_rule", False, False, True)
CHUNK_DPLR = Kernel("fla.ops.generalized_delta_rule.dplr", "chunk_dplr_delta_rule")
RECURRENT_DPLR = Kernel("fla.ops.generalized_delta_rule.dplr", "fused_recurrent_dplr_delta_rule", False, False, True)


@functools.lru_cache(maxsize=None)
def import_problem() -> Optional[str]:
    """Why fla cannot be used in this process, or None. A broken Triton or fla may raise anything when imported."""
    if importlib.util.find_spec("fla") is None:
        return "flash-linear-attention is not installed; pip install 'flash-linear-attention>=0.6.0'"
    try:
        fla = importlib.import_module("fla")
        importlib.import_module("fla.ops.gated_delta_rule")
        importlib.import_module("fla.ops.generalized_delta_rule.dplr")
    except Exception as error:  # ImportError, ValueError of a mismatched Triton, RuntimeError of a missing driver, ...
        return f"fla does not import: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    version = str(getattr(fla, "__version__", "0"))
    if _numbers(version)[:2] < OLDEST:
        return f"fla {version} is installed and 0.6.0 or newer is needed; upgrade flash-linear-attention"
    return None


def kernel(which: Kernel) -> Callable[..., Any]:
    """The official function; call it only if `problem` returns None."""
    return getattr(importlib.import_module(which.module), which.name)


def problem(
    which: Kernel, key: int, gradients: bool, first: torch.Tensor, *others: Optional[torch.Tensor]
) -> Optional[str]:
    """Why the official function cannot compute a call, or None.

    Args:
        which: the function.
        key: size of a key.
        gradients: whether autograd records the call.
        first, others: all tensors of the call.
    """
    if first.device.type != "cuda":
        return f"the official kernels run on CUDA devices only, and the tensors are on {first.device.type}"
    if any(x is not None and x.dtype == torch.float64 for x in (first, *others)):
        return "the official kernels have no float64"
    if not which.any_size and key > LARGEST_KEY:
        return f"{which.name} takes keys of at most {LARGEST_KEY} numbers, and these have {key}"
    if not first.numel():
        return "the official kernels do not take empty inputs"
    if gradients and not which.backward:
        return f"the official {which.name} has no backward pass"
    missing = import_problem()
    if missing is not None:
        return missing
    if gradients and which.gated:
        return unsound_gated_backward(_triton_version(), torch.cuda.get_device_capability(first.device))
    return None


def unsound_gated_backward(triton: str, capability: Tuple[int, int]) -> Optional[str]:
    """Why the official backward pass with a decay for each head is wrong here, or None.

    fla refuses it on Hopper GPUs with Triton 3.4.0 to 3.7.0, which compile it wrongly (its issue 640).

    Args:
        triton: its version.
        capability: the GPU's compute capability.

    Example:
        >>> unsound_gated_backward("3.6.0", (9, 0))[:54]
        "fla's gated backward is wrong on Hopper GPUs with Trit"
        >>> unsound_gated_backward("3.7.1", (9, 0)) is None
        True
    """
    if capability[0] == 9 and (3, 4, 0) <= _numbers(triton) < (3, 7, 1):
        return (f"fla's gated backward is wrong on Hopper GPUs with Triton 3.4.0 to 3.7.0, and this is {triton}; "
                "upgrade triton to 3.7.1")
    return None


def _triton_version() -> str:
    return str(getattr(importlib.import_module("triton"), "__version__", "0"))


def _numbers(version: str) -> Tuple[int, ...]:
    found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", version)
    return tuple(int(part or 0) for part in found.groups()) if found else (0, 0, 0)

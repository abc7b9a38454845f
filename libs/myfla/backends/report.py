"""A report of the available backends, and the choice for a whole module."""

from typing import Any, Dict, Optional

import torch
from torch import nn

from myfla.backends import official
from myfla.backends.choice import AUTO_RULE, check_backend
from myfla.backends.compiler import compiler_problem
from myfla.utils.errors import value_error
from myfla.utils.native import missing_native, native_level

__all__ = ["describe", "set_backend", "summary"]


def describe(device: Any = "cpu", probe: bool = False) -> Dict[str, str]:
    """For each backend whether it can be used on a device, and if not, why.

    Args:
        device: as ``torch.device`` takes it.
        probe: also compile a function to test the compiler (takes seconds); otherwise only check for ``torch.compile``.

    Returns:
        For each backend ``"usable"``, ``"usable, ..."`` with a limit, or the reason why not; ``auto`` first, with its
        rule and the backend that it chooses on this device.

    Example:
        >>> describe("cpu")["torch"]
        'usable'
    """
    device = torch.device(device)
    if probe or not hasattr(torch, "compile"):
        compiled = compiler_problem(device.type) or "usable"
    else:
        compiled = "usable where torch.compile works; tried at the first call"
    return {
        "auto": f"{summary('auto', device)}; {AUTO_RULE}",
        "naive": "usable, slow",
        "torch": "usable",
        "native": _native(device),
        "compiled": compiled,
        "fla": _official(device),
    }


def summary(backend: str, device: Optional[torch.device] = None) -> str:
    """A backend as the ``repr`` of a layer shows it: for ``auto`` with the result on the layer's device.

    Args:
        backend: a name.
        device: the device of the layer.

    Returns:
        The text.

    Example:
        >>> summary("auto", torch.device("meta")), summary("naive")
        ('auto (torch on meta)', 'naive')
    """
    if backend != "auto" or device is None:
        return backend
    if device.type == "cpu" and missing_native() is None:
        return "auto (native on cpu, but torch in float64)"
    if device.type != "cuda" or official.import_problem() is not None:
        return f"auto (torch on {device.type})"
    limit = " without gradients" if _backward(device) else ""
    return f"auto (fla in half precision{limit}, else torch, on {device.type})"


def set_backend(module: nn.Module, backend: str) -> int:
    """Set the backend of every layer in a module: a layer, a model, an encoder.

    Args:
        module: any module.
        backend: one of `myfla.backends.BACKENDS`.

    Returns:
        The number of layers whose backend was set.

    Raises:
        BackendError: unknown, or not available here.
        ValueError: the module has no layer with a choice.

    Example:
        >>> from myfla.layers import GatedDeltaNet
        >>> set_backend(nn.Sequential(GatedDeltaNet(hidden_size=8, head_dim=4, num_heads=1)), "naive")
        1
    """
    check_backend("set_backend", backend)
    layers = [layer for layer in module.modules() if getattr(layer, "chooses_backend", False)]
    if not layers:
        raise value_error("set_backend", "module", "must hold a layer of myfla", type(module).__name__)
    for layer in layers:
        setattr(layer, "backend", backend)
    return len(layers)


def _native(device: torch.device) -> str:
    missing = missing_native()
    if missing is not None:
        return f"not usable: {missing}"
    if device.type != "cpu":
        return f"not usable: the compiled kernels run on CPUs, and this is {device.type}"
    return f"usable ({native_level()}), except: float64"


def _official(device: torch.device) -> str:
    if device.type != "cuda":
        return f"not usable: the official kernels run on CUDA devices only, and this is {device.type}"
    missing = official.import_problem()
    if missing is not None:
        return f"not usable: {missing}"
    return f"usable, except: {_backward(device)}" if _backward(device) else "usable"


def _backward(device: torch.device) -> Optional[str]:
    return official.unsound_gated_backward(official._triton_version(), torch.cuda.get_device_capability(device))

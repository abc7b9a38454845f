"""Whether this machine can have a GPU, without loading torch."""

import ctypes
import os
import sys

from app.errors import RunError

__all__ = ["no_device", "surely_no_gpu"]

_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_AMD = "/dev/kfd"


def surely_no_gpu() -> bool:
    """True if neither NVIDIA's nor AMD's driver is present; otherwise torch decides."""
    if os.path.exists(_AMD):
        return False
    try:
        ctypes.CDLL(_DRIVER)
    except OSError:
        return True
    return False


def no_device(key: str, device: str, instead: str) -> RunError:
    """The error for a device that this machine does not have.

    Args:
        key: key of the setting that names the device.
        device: the value of the setting.
        instead: a setting that works.
    """
    kind = "Apple GPU" if device == "mps" else "GPU"
    return RunError(f"{key}={device}: No {kind} found on this machine; use {instead}")

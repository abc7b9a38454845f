"""Linear-recurrent sequence layers in pure PyTorch, equal to flash-linear-attention's.

Shape legend, used everywhere in this package:

====  =====================================================================
B     batch rows                   T     time steps (tokens)
H     query/key heads              HV    value heads, a multiple of H
K     key size of one head         V     value size of one head
N     sequences (B, or the number packed by ``cu_seqlens``)
D     channels                     W     convolution width
C     tokens in a chunk
====  =====================================================================

A recurrent state is ``[N, HV, K, V]``.
"""

import importlib
from typing import Any, List

__version__ = "0.2.0"

_PACKAGES = ("layers", "models")  # whose names can be had from here, as in fla


def __getattr__(name: str) -> Any:
    if not name.startswith("_") and name not in _PACKAGES:
        for package in _PACKAGES:
            module = importlib.import_module(f"{__name__}.{package}")
            if name in module.__all__:
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> List[str]:
    shown = [name for package in _PACKAGES for name in importlib.import_module(f"{__name__}.{package}").__all__]
    return sorted([*globals(), *shown])

"""The shared library, and calls of its functions by ctypes, which releases the interpreter's lock during a call."""

import ctypes
import sys
from pathlib import Path
from typing import Any, Callable, Optional, Sequence

import torch

__all__ = ["DTYPES", "INTERFACE", "LEVELS", "declare", "empty", "level", "pays", "pointer", "set_level", "threads"]

INTERFACE = 7
"""The interface number that the compiled library must return; increased together with ``MN_INTERFACE`` in the
sources."""

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
LEVELS = ("base", "avx2", "avx512")
NO_MEMORY = 1

_NAMES = {"darwin": "libmyfla_native.dylib", "win32": "myfla_native.dll"}
_KINDS = {"p": ctypes.c_void_p, "i": ctypes.c_int64, "n": ctypes.c_int, "f": ctypes.c_float, "d": ctypes.c_double}

threads = torch.get_num_threads


def _load() -> ctypes.CDLL:
    path = Path(__file__).with_name(_NAMES.get(sys.platform, "libmyfla_native.so"))
    if not path.exists():
        raise ImportError(f"myfla_native was installed without its library {path.name}; pip install it again")
    library = ctypes.CDLL(str(path))
    if library.mn_interface() != INTERFACE:
        raise ImportError(f"myfla_native: {path.name} has interface {library.mn_interface()}, not {INTERFACE}")
    return library


_library = _load()


def declare(name: str, arguments: str) -> Callable[..., None]:
    """A C function as a Python one.

    Args:
        name: of an exported function that returns a status.
        arguments: a letter for each: ``p`` pointer (an address or None), ``i`` int64, ``n`` int, ``f`` float,
            ``d`` double; blanks do not count.

    Raises:
        MemoryError: (when called) there is no memory for the scratch space.
    """
    function = getattr(_library, name)
    function.argtypes = [_KINDS[letter] for letter in arguments if letter != " "]
    function.restype = ctypes.c_int

    def call(*given: Any) -> None:
        if function(*given):
            raise MemoryError(f"myfla_native: no memory for the scratch space of {name}")

    return call


_huge_pages = declare("mn_huge_pages", "pi")
_NEW_MEMORY = 8 << 20  # bytes; tensors of this size are often, and from 32 MB on always, in memory new to the process


def empty(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """`torch.empty` on the CPU. Large tensors ask the system for huge pages: to get new memory in small pages takes
    longer than to compute what is written there."""
    x = torch.empty(shape, dtype=dtype, device="cpu")
    size = x.numel() * x.element_size()
    if size >= _NEW_MEMORY:
        _huge_pages(x.data_ptr(), size)
    return x


def pointer(x: Optional[torch.Tensor]) -> Optional[int]:
    """The address of a tensor's first element, or None."""
    return None if x is None else x.data_ptr()


def level() -> str:
    """Which compiled variant is in use: ``base``, ``avx2`` or ``avx512``."""
    return LEVELS[_library.mn_set_level(-1) if _forced is None else _library.mn_set_level(LEVELS.index(_forced))]


def pays() -> bool:
    """Whether the library's products of matrices are the faster ones on this processor."""
    return bool(_library.mn_products_pay())


_forced: Optional[str] = None


def set_level(name: Optional[str]) -> str:
    """Use a lower variant than the processor supports (None: the best), for tests; returns the variant that is now in
    use."""
    global _forced
    _forced = name
    return level()

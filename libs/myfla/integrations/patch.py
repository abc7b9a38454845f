"""Replace functions of other packages by device of the tensors, and put everything back."""

import functools
from types import TracebackType
from typing import Any, Callable, List, NamedTuple, Optional, Tuple, Type

import torch

__all__ = ["Patch"]


class _Change(NamedTuple):
    owner: Any  # a module or a class
    name: str
    before: Callable
    after: Callable


class Patch:
    """Functions and methods that were replaced. `undo`, or the end of a ``with`` block, restores them.

    Args:
        devices: types of devices whose tensors the replacements compute, e.g. ``("cpu",)``.

    Attributes:
        active: whether the replacements are in effect; False after `undo`.
        changed: the replaced functions and methods as dotted names; empty after `undo`.

    Example:
        >>> import types
        >>> other = types.ModuleType("other")
        >>> other.double = lambda x: x + x
        >>> with Patch(("cpu",)) as patch:
        ...     patch.replace(other, "double", lambda x: -x)
        ...     patch.changed, other.double(torch.ones(())).item()
        (['other.double'], -1.0)
        >>> other.double(torch.ones(())).item()
        2.0
    """

    def __init__(self, devices: Tuple[str, ...]) -> None:
        self.devices = devices
        self.active = True
        self._changes: List[_Change] = []

    @property
    def changed(self) -> List[str]:
        """The replaced functions and methods, as dotted names."""
        return [f"{_dotted_name(change.owner)}.{change.name}" for change in self._changes]

    def replace(self, owner: Any, name: str, ours: Callable) -> None:
        """Replace ``owner.name`` by ``ours`` for calls whose first tensor is on one of `devices`."""
        before = getattr(owner, name)
        after = self._choice(before, ours)
        setattr(owner, name, after)
        self._changes.append(_Change(owner, name, before, after))

    def undo(self) -> None:
        """Restore everything. A second call does nothing.

        Patches may be undone in any order: one that lies under another stops at once, and leaves with it. What was
        copied from a patched place, such as a bound method, stays harmless: it does what was there before.
        """
        self.active = False
        for owner, name, before, after in reversed(self._changes):
            if getattr(owner, name) is after:
                setattr(owner, name, _below(before))
        self._changes = []

    def _choice(self, before: Callable, ours: Callable) -> Callable:
        # What stands there may be a torch module (the `kernels` package makes them): its __dict__ is not to be copied.
        @functools.wraps(before, assigned=("__module__", "__name__", "__qualname__", "__doc__"), updated=())
        def choose(*args: Any, **kwargs: Any) -> Any:
            first = next(x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor))
            ours_computes = self.active and first.device.type in self.devices
            return (ours if ours_computes else before)(*args, **kwargs)

        setattr(choose, "patch", self)
        return choose

    def __enter__(self) -> "Patch":
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.undo()

    def __repr__(self) -> str:
        return f"Patch(devices={self.devices}, active={self.active}, changed={self.changed})"


def _dotted_name(owner: Any) -> str:
    return f"{owner.__module__}.{owner.__qualname__}" if isinstance(owner, type) else owner.__name__


def _below(function: Any) -> Any:
    """What lies under patches that are undone."""
    while isinstance(getattr(function, "patch", None), Patch) and not function.patch.active:
        function = function.__wrapped__
    return function

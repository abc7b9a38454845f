"""Other modules with the names of ours: reported before one of them is used by mistake."""

from importlib.util import find_spec
from pathlib import Path
from typing import Optional, Sequence

__all__ = ["shadowed"]

OURS = ("cfg", "encoders", "myfla")


def shadowed(names: Sequence[str] = OURS) -> Optional[str]:
    """What to say if Python would import another module under one of these names; None if all are ours.

    Example:
        >>> shadowed() is None
        True
    """
    here = Path(__file__).resolve().parents[1]
    for name in names:
        spec = find_spec(name)
        origin = None if spec is None else spec.origin
        if spec is None:
            return f"the package {name!r} must be installed beside this one; got none; pip install myfla"
        if origin is None or Path(origin).resolve().parents[1] not in _roots(here):
            found = origin or ", ".join(spec.submodule_search_locations or ())
            return (f"the package {name!r} must be the one of this application; got {found}, which has its name and "
                    "comes first; run the command `myfla` from another folder, or rename it")
    return None


def _roots(here: Path) -> Sequence[Path]:
    """Where our packages lie: side by side in an installation, ``src`` and ``libs`` in a checkout."""
    return here, here.parent / "libs"

"""Where the config tree lies."""

from pathlib import Path

__all__ = ["conf_dir"]


def conf_dir() -> Path:
    """``app/conf`` in an installed wheel, ``conf`` at the root of a checkout or an editable install."""
    source = Path(__file__).resolve().parents[1]
    installed = source / "app" / "conf"
    return installed if installed.is_dir() else source.parent / "conf"

"""``python -m app`` and the command ``myfla``."""

import sys

from app.shadows import shadowed

__all__ = ["main"]


def main() -> None:
    """The command line; also the console script ``myfla``."""
    problem = shadowed()
    if problem is not None:
        sys.exit(f"error: {problem}")
    from app.command import run_command  # only now: it imports what could be somebody else's

    run_command(sys.argv[1:])

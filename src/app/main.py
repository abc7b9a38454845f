"""``python -m app``, and its entry for programs of your own."""

from myfla_command import main

__all__ = ["main"]

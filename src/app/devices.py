"""The torch device that a trainer's settings name."""

import torch

from app.errors import RunError

__all__ = ["find_device"]


def find_device(accelerator: str) -> str:
    """``cpu``, ``cuda`` or ``mps`` for ``trainer.accelerator``.

    Raises:
        RunError: this machine has none.
    """
    there = {"gpu": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if accelerator == "auto":
        accelerator = next(name for name, found in there.items() if found)
    if not there[accelerator]:
        raise RunError(f"trainer.accelerator={accelerator} must be a device of this machine; got none; use cpu or auto")
    return "cuda" if accelerator == "gpu" else accelerator

"""The torch devices for the settings of a trainer."""

import torch

from app.errors import RunError
from app.gpu import no_device
from cfg.trainer import TrainerConfig

__all__ = ["check_devices", "find_device"]


def find_device(accelerator: str) -> str:
    """``cpu``, ``cuda`` or ``mps`` for ``trainer.accelerator``.

    Raises:
        RunError: this machine has none.
    """
    there = {"gpu": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if accelerator == "auto":
        accelerator = next(name for name, found in there.items() if found)
    if not there[accelerator]:
        raise no_device("trainer.accelerator", accelerator, "trainer=cpu")
    return "cuda" if accelerator == "gpu" else accelerator


def check_devices(trainer: TrainerConfig) -> None:
    """Check that the trainer's devices exist, before anything is read.

    Raises:
        RunError: this machine has none, or fewer.
    """
    device = find_device(trainer.accelerator)
    if device == "cuda" and trainer.devices > torch.cuda.device_count():
        raise RunError(f"trainer.devices must be at most {torch.cuda.device_count()}, the GPUs that this process sees; "
                       f"got {trainer.devices}; set CUDA_VISIBLE_DEVICES, or trainer.num_nodes for several machines")

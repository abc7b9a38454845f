"""Trainer configs: how Lightning runs the loop."""

from dataclasses import dataclass
from typing import Literal, Optional, Tuple, get_args

from cfg.validation import Fields

__all__ = ["TrainerConfig"]

ACCELERATORS = ("auto", "cpu", "gpu", "mps")
Precision = Literal["32-true", "64-true", "16-mixed", "bf16-mixed"]
PRECISIONS: Tuple[Precision, ...] = get_args(Precision)
STRATEGIES = ("auto", "ddp", "fsdp")


@dataclass
class TrainerConfig:
    """The arguments of `lightning.Trainer` that a run may change, under their own names.

    Args:
        name: name of the preset.
        max_epochs (epochs): length of the schedule in epochs; early stopping may end the training before. Null: given
            by ``max_steps``, or chosen from the training data.
        max_steps (steps): length of the schedule in optimizer steps, instead of ``max_epochs``. It is rounded up so
            that all epochs have the same number of steps.
        limit_batches (batches): largest number of batches in an epoch, for a quick trial; null: all.
        accumulate_grad_batches (batches): number of batches for one optimizer step, if a large batch does not fit into
            memory.
        overfit_batches (batches): train on this number of batches only and validate on the same ones, to see whether
            the model can learn; null: the complete training set.
        detect_anomaly: let PyTorch name the operation that produced a NaN in a gradient; slow.
        gradient_clip_val: largest norm of the gradient; null: no clipping.
        accelerator: device: ``cpu``, ``gpu``, ``mps`` or ``auto``.
        devices (devices): number of devices on each machine.
        num_nodes (machines): number of machines, for torchrun or SLURM.
        strategy: ``ddp``: every process has the complete model; ``fsdp`` (GPU): each has a part of it; ``auto``:
            for a single device.
        precision: precision of the training: ``32-true``, ``64-true``, ``16-mixed`` or ``bf16-mixed``.
        threads (threads): number of threads of torch on the CPU; null: torch's default.
        progress: show a progress bar; without a terminal, a line from time to time.

    Raises:
        ConfigError: a field breaks its rule; the message starts with ``trainer.<field>``.
    """

    name: str = "cpu"
    max_epochs: Optional[int] = 20
    max_steps: Optional[int] = None
    limit_batches: Optional[int] = None
    accumulate_grad_batches: int = 1
    overfit_batches: Optional[int] = None
    detect_anomaly: bool = False
    gradient_clip_val: Optional[float] = 1.0
    accelerator: str = "cpu"
    devices: int = 1
    num_nodes: int = 1
    strategy: str = "auto"
    precision: str = "32-true"
    threads: Optional[int] = None
    progress: bool = True

    def __post_init__(self) -> None:
        fields = Fields(self, "trainer")
        fields.text("name")
        fields.integer("max_epochs", 1, 1 << 20, optional=True)
        fields.integer("max_steps", 1, 1 << 40, optional=True)
        fields.integer("limit_batches", 1, 1 << 30, optional=True)
        fields.integer("accumulate_grad_batches", 1, 1 << 20)
        fields.integer("overfit_batches", 1, 1 << 20, optional=True)
        fields.flag("detect_anomaly")
        fields.number("gradient_clip_val", 0, 1e9, open_low=True, optional=True)
        fields.choice("accelerator", ACCELERATORS)
        fields.integer("devices", 1, 1 << 10)
        fields.integer("num_nodes", 1, 1 << 16)
        fields.choice("strategy", STRATEGIES)
        if self.strategy == "fsdp" and self.accelerator == "cpu":
            raise fields.error("strategy", "must be ddp or auto with trainer.accelerator=cpu", "fsdp")
        if self.strategy == "auto" and self.devices * self.num_nodes > 1:
            raise fields.error("strategy", f"must be ddp or fsdp for {self.devices * self.num_nodes} devices", "auto",
                               "use trainer=ddp")
        fields.choice("precision", PRECISIONS)
        fields.integer("threads", 1, 1 << 10, optional=True)
        fields.flag("progress")

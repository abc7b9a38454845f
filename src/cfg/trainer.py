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
        name: label of the preset.
        max_epochs (epochs): length of the schedule; early stopping may end before. Null: ``max_steps``, or as the
            training data suggest (`encoders.training.settle`).
        max_steps (steps): length of the schedule in optimizer steps, instead of ``max_epochs``: in as few passes as
            hold them, each of as many batches, so up to one step a pass more.
        limit_batches (batches): most batches of an epoch, for a quick trial; null for all.
        accumulate_grad_batches (batches): how many batches make one optimizer step together, for batches that do not
            fit into memory at once.
        overfit_batches (batches): train on this many batches only and validate on the same ones, to see whether the
            model learns at all; null: the whole training set.
        detect_anomaly: let PyTorch name the operation that made a NaN in a gradient; slow.
        gradient_clip_val: largest norm of the gradient; null for no clipping.
        accelerator: ``cpu``, ``gpu``, ``mps`` or ``auto``.
        devices (devices): how many of them, on each machine.
        num_nodes (machines): machines, under torchrun or SLURM.
        strategy: ``auto``; ``ddp``: every process has the whole model; ``fsdp`` (GPU): each has a part of it.
        precision: ``32-true``, ``64-true``, ``16-mixed`` or ``bf16-mixed``.
        threads (threads): threads of torch on the CPU; null leaves torch's choice.
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

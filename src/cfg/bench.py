"""The config of ``job=bench``."""

from dataclasses import dataclass, field
from typing import Any, List

from cfg.job import JobConfig
from cfg.validation import Fields

__all__ = ["BenchJobConfig"]


@dataclass
class BenchJobConfig(JobConfig):
    """How fast this machine runs the configured encoder, and how much memory that takes.

    Where it runs, its precision and its threads are the trainer's (``trainer.accelerator``, ``.precision``,
    ``.threads``).

    Args:
        batch (sequences): sequences in a call of prefill and in a training step.
        lengths (tokens): lengths of these sequences; each one is measured.
        sessions (sequences): numbers of sequences that get one token each in a decoding call; each one is measured.
        rounds (samples): samples of each figure, taken in turn; the median counts.
        memory: measure peak memory too, each figure in a separate process.

    Raises:
        ConfigError: a field breaks its rule; the message starts with ``job.<field>``.
    """

    name: str = "bench"
    batch: int = 8
    lengths: List[int] = field(default_factory=lambda: [128, 1024])
    sessions: List[int] = field(default_factory=lambda: [1, 64])
    rounds: int = 11
    memory: bool = True

    def validate(self) -> None:
        super().validate()
        fields = Fields(self, "job")
        fields.integer("batch", 1, 1 << 20)
        _sizes(fields, "lengths", self.lengths)
        _sizes(fields, "sessions", self.sessions)
        fields.integer("rounds", 3, 10000)
        fields.flag("memory")


def _sizes(fields: Fields, name: str, values: Any) -> None:
    rule = fields.rule(name, "a list of different integers from 1")
    good = isinstance(values, list) and values and all(type(v) is int and 1 <= v <= 1 << 24 for v in values)
    if not good or len(set(values)) < len(values):
        raise fields.error(name, rule, values)

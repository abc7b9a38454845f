"""The config of ``job=describe``."""

from dataclasses import dataclass

from cfg.job import JobConfig
from cfg.validation import Fields

__all__ = ["DescribeJobConfig"]


@dataclass
class DescribeJobConfig(JobConfig):
    """Show what is installed and what the configured encoder is made of; nothing is trained.

    Args:
        batch (sequences): sequences in the input for which shapes are shown.
        length (steps): steps of that input.
        depth (levels): how many levels of modules are shown; 1 shows blocks, 3 every projection of a layer.

    Raises:
        ConfigError: a field breaks its rule; the message starts with ``job.<field>``.
    """

    name: str = "describe"
    batch: int = 2
    length: int = 100
    depth: int = 2

    def validate(self) -> None:
        super().validate()
        fields = Fields(self, "job")
        fields.integer("batch", 1, 1 << 20)
        fields.integer("length", 1, 1 << 24)
        fields.integer("depth", 1, 100)

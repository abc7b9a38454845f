"""The config of ``job=describe``."""

from dataclasses import dataclass

from cfg.job import JobConfig
from cfg.validation import Fields

__all__ = ["DescribeJobConfig"]


@dataclass
class DescribeJobConfig(JobConfig):
    """Show what is installed and what the configured encoder is made of; nothing is trained.

    Args:
        batch, length (sequences and steps): size of the input whose way through the layers is shown.
        depth (levels): how deep modules are opened; 1 shows whole blocks, 3 every projection of a layer.

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

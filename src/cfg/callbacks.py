"""Callback configs: what happens in training between epochs and steps."""

from dataclasses import dataclass
from typing import Optional

from cfg.validation import Fields

__all__ = ["CallbacksConfig"]


@dataclass
class CallbacksConfig:
    """Switches of Lightning's callbacks; the progress bar has ``trainer.progress``.

    Args:
        name: name of the preset.
        early_stopping: end after ``job.patience`` epochs without a better validation loss; false: train for all of
            ``trainer.max_epochs``.
        min_delta (loss): by how much the loss must fall to count as better, for early stopping.
        best_weights: end with the weights of the epoch with the lowest validation loss; false: with the last ones.
        checkpoint_steps (batches): also write a checkpoint each time after this number of batches, for epochs that take
            hours; null: only after every epoch.
        learning_rate_monitor: log the learning rate of every step; ``metrics.csv`` has only one for every epoch.

    Raises:
        ConfigError: a field breaks its rule; the message starts with ``callbacks.<field>``.
    """

    name: str = "default"
    early_stopping: bool = True
    min_delta: float = 0.0
    best_weights: bool = True
    checkpoint_steps: Optional[int] = None
    learning_rate_monitor: bool = False

    def __post_init__(self) -> None:
        fields = Fields(self, "callbacks")
        fields.text("name")
        fields.flag("early_stopping")
        fields.number("min_delta", 0, 1e9)
        fields.flag("best_weights")
        fields.integer("checkpoint_steps", 1, 1 << 40, optional=True)
        fields.flag("learning_rate_monitor")

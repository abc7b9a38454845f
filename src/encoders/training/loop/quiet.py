"""Hide messages of other libraries from the run's log."""

import logging
import warnings

__all__ = ["quiet"]

LOGGERS = ("lightning", "lightning.pytorch", "lightning.fabric", "lightning_fabric", "pytorch_lightning", "matplotlib")
WARNINGS = (
    ".*does not have many workers.*",  # a small set in memory: worker processes would only cost
    ".*The number of training batches.*log_every_n_steps.*",  # figures are logged by epoch
    ".*sync_dist=True.*",  # our figures are over all processes already
    ".*your dataloader is not resumable.*",  # the data module is
    ".*LeafSpec.*deprecated.*",  # between Lightning and torch
    ".*Checkpoint directory .* exists and is not empty.*",
)


def quiet() -> None:
    """Keep warnings and errors of these libraries and hide their informational messages."""
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in WARNINGS:
        warnings.filterwarnings("ignore", message=message)

"""Training: sequences with targets, tasks on top of an encoder, the loop. For the application and the estimators.

Needs Lightning and torchmetrics (``pip install 'myfla[app]'``); `encoders` by itself never imports it.
"""

__all__ = ["CHECKPOINTS"]

CHECKPOINTS = "checkpoints"
"""The subfolder of a run for the files that a restart needs."""

"""Decay and write strength of a layer at each token: reported by strategies, collected by `encoders.probing`."""

from typing import NamedTuple

import torch

__all__ = ["Gates"]


class Gates(NamedTuple):
    """Decay and write strength of a layer at each token.

    Attributes:
        log_decay: ``[..., heads, channels]``, at most 0: at this token, the state is multiplied by ``exp(log_decay)``.
            A layer with one decay for each head has one channel.
        strength: ``[..., heads, channels]``: how much of what is stored under a key is replaced.
        strength_name: its usual name, ``beta`` or ``a``.
        strongest: end of its range, which begins at 0.
    """

    log_decay: torch.Tensor
    strength: torch.Tensor
    strength_name: str
    strongest: float = 1.0

"""How a layer treats its state at each token: what a strategy reports, and what `encoders.probing` collects."""

from typing import NamedTuple

import torch

__all__ = ["Gates"]


class Gates(NamedTuple):
    """How a layer treats its state at each token.

    Attributes:
        log_decay: ``[..., heads, channels]``, at most 0: at this token, the state is multiplied by ``exp(log_decay)``.
            A layer that decays whole heads has one channel.
        strength: ``[..., heads, channels]``: how much of what is stored under a key is replaced.
        strength_name: the field's name for it, ``beta`` or ``a``.
        strongest: end of its range, which begins at 0.
    """

    log_decay: torch.Tensor
    strength: torch.Tensor
    strength_name: str
    strongest: float = 1.0

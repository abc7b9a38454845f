"""The configs of encoders of PyTorch's own recurrent layers."""

from dataclasses import dataclass
from typing import Optional

from cfg.encoder_base import EncoderConfig
from cfg.validation import Fields

__all__ = ["GRUEncoderConfig", "LSTMEncoderConfig", "RNNEncoderConfig"]


@dataclass
class RNNEncoderConfig(EncoderConfig):
    """What encoders of PyTorch's own recurrent layers have.

    Args:
        state_size (channels): width of the recurrent state; null: ``hidden_size``.
    """

    state_size: Optional[int] = None

    def validate(self) -> None:
        super().validate()
        Fields(self, "encoder").integer("state_size", 1, 1 << 16, optional=True)


@dataclass
class GRUEncoderConfig(RNNEncoderConfig):
    """An encoder of `torch.nn.GRU` layers, as a baseline.

    Example:
        >>> GRUEncoderConfig(input_size=12, state_size=96).name
        'gru'
    """

    name: str = "gru"


@dataclass
class LSTMEncoderConfig(RNNEncoderConfig):
    """An encoder of `torch.nn.LSTM` layers, as a baseline.

    Example:
        >>> LSTMEncoderConfig(input_size=12).name
        'lstm'
    """

    name: str = "lstm"

"""What can be set: everything an encoder has, and two flags of the layer."""

from dataclasses import dataclass

from cfg.encoder import EncoderConfig
from cfg.validation import Fields


@dataclass
class AcmeEncoderConfig(EncoderConfig):
    """An encoder of gated convolutions.

    Args:
        kernel_size: steps that a layer looks back, its own included.
        gate: multiply the convolution with a sigmoid gate.
    """

    name: str = "acme"
    kernel_size: int = 4
    gate: bool = True

    def validate(self) -> None:
        super().validate()
        fields = Fields(self, "encoder")
        fields.integer("kernel_size", 1, 256)
        fields.flag("gate")

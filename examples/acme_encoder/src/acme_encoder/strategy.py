"""How the stack gets its layers."""

from typing import Any

import torch.nn as nn

from acme_encoder.config import AcmeEncoderConfig
from acme_encoder.mixer import GatedConvolution
from encoders import EncoderStrategy


class AcmeEncoderStrategy(EncoderStrategy):
    """Gated convolutions in the stack's own residual blocks."""

    name = "acme"
    config_class = AcmeEncoderConfig

    def build_mixer(self, config: AcmeEncoderConfig, layer_idx: int, device: Any = None,
                    dtype: Any = None) -> nn.Module:
        return GatedConvolution(
            config.hidden_size, config.kernel_size, config.gate, layer_idx, device=device, dtype=dtype
        )

"""Stems: front ends for real-valued input that replace the projection in front of the stack."""

from typing import Any, Dict, Union

from cfg.encoder import EncoderConfig
from encoders.stem.inception import InceptionStem
from encoders.stem.rows import shorten
from encoders.stem.strided import Stem

__all__ = ["InceptionStem", "Stem", "build_stem", "shorten"]


def build_stem(config: EncoderConfig, input_size: int, device: Any = None,
               dtype: Any = None) -> Union[Stem, InceptionStem]:
    """The stem that ``config.stem`` names, which is not ``none``."""
    made: Dict[str, Any] = dict(eps=config.norm_eps, device=device, dtype=dtype)
    stride, kernel, size = config.shortening, config.widest_kernel, config.hidden_size
    if config.stem == "inception":
        causal = config.direction == "causal"
        return InceptionStem(input_size, size, stride, kernel, causal, slot=config.num_layers, **made)
    if config.stem == "patch":
        return Stem(input_size, size, [stride], stride, False, **made)
    halvings = stride.bit_length() - 1
    return Stem(input_size, size, [2] * halvings or [1], kernel, **made)

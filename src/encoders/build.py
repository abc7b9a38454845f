"""From a config to an encoder."""

from typing import Any, Mapping, Union

from cfg.encoder import EncoderConfig
from encoders.configs import encoder_config
from encoders.factory import get_strategy
from encoders.stack import Encoder
from myfla.utils.errors import value_error

__all__ = ["build_encoder"]


def build_encoder(config: Union[EncoderConfig, Mapping[str, Any]], device: Any = None, dtype: Any = None) -> Encoder:
    """The encoder that a config describes.

    Args:
        config: a strategy's config, whose ``name`` says which; or a mapping with ``name`` and fields of it.
        device, dtype: for every parameter.

    Raises:
        ValueError: no such strategy (`UnknownEncoderError`), a broken one (`PluginError`), or a broken rule.

    Example:
        >>> build_encoder({"name": "gated_deltanet", "vocab_size": 10}).config.hidden_size
        64
    """
    if isinstance(config, Mapping):
        config = encoder_config(config)
    if not isinstance(config, EncoderConfig):
        raise value_error("build_encoder", "config", "must be an EncoderConfig or a mapping", type(config).__name__)
    return get_strategy(config.name).build(config, device=device, dtype=dtype)

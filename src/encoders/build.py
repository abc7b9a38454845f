"""From a config to an encoder."""

from typing import Any, Mapping, Union

from cfg.encoder import EncoderConfig
from encoders.configs import encoder_config
from encoders.factory import get_strategy
from encoders.pretrained import config_with_checkpoint
from encoders.stack import Encoder
from myfla.utils.errors import value_error

__all__ = ["build_encoder", "with_checkpoint_sizes"]


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


def with_checkpoint_sizes(config: EncoderConfig) -> EncoderConfig:
    """The config with the sizes of the checkpoint that its ``pretrained`` names; without one, as it is.

    What `build_encoder` does first; for callers that must know the sizes before.

    Raises:
        ValueError: as `build_encoder`.

    Example:
        >>> config = encoder_config({"name": "rwkv7", "input_size": 3})
        >>> with_checkpoint_sizes(config) is config
        True
    """
    return config if config.pretrained is None else config_with_checkpoint(get_strategy(config.name), config)

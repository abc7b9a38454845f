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
        config: the config of a strategy, or a mapping with ``name`` and fields of that strategy's config.
        device, dtype: of every parameter.

    Returns:
        The `Encoder`, in training mode.

    Raises:
        ValueError: the strategy is unknown (`UnknownEncoderError`) or broken (`PluginError`), or a field breaks its
            rule.

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
    """The config with the sizes of the checkpoint that its ``pretrained`` names; unchanged if it names none.

    `build_encoder` does this first; this function is for callers that must know the sizes before.

    Args:
        config: the config of a strategy.

    Returns:
        A config of the same class.

    Raises:
        ValueError: as `build_encoder`.

    Example:
        >>> config = encoder_config({"name": "rwkv7", "input_size": 3})
        >>> with_checkpoint_sizes(config) is config
        True
    """
    return config if config.pretrained is None else config_with_checkpoint(get_strategy(config.name), config)

"""Registration of config classes in Hydra's ConfigStore."""

from typing import Type

from cfg.encoder import ENCODER_CONFIGS, EncoderConfig
from cfg.hydra_versions import store_config

__all__ = ["register_encoder_config", "register_encoder_configs"]


def register_encoder_configs() -> None:
    """Store the schema of every built-in encoder as ``encoder/schema/<name>``.

    The presets in ``conf/encoder/`` name them in their defaults list; storing them under ``encoder/<name>`` as well
    would collide with those files. Calling it again changes nothing.
    """
    for name, config_class in ENCODER_CONFIGS.items():
        register_encoder_config(name, config_class, preset=False)


def register_encoder_config(name: str, config_class: Type[EncoderConfig], preset: bool = True) -> None:
    """Store one encoder's config class, so that ``encoder=<name>`` composes.

    Args:
        name: the strategy's name.
        config_class: its dataclass.
        preset: store it as ``encoder/<name>`` too; False where a YAML file of that name is on the search path.
    """
    store_config(group="encoder/schema", name=name, node=config_class, provider="encoders")
    if preset:
        store_config(group="encoder", name=name, node=config_class, provider="encoders")

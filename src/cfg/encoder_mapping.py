"""Encoder configs from and to plain mappings, and the switch from one encoder to another."""

import dataclasses
from typing import Any, Dict, Mapping, Type

from cfg.encoder import ENCODER_CONFIGS, EncoderConfig
from cfg.validation import ConfigError, config_error, nearest

__all__ = ["field_names", "from_mapping", "portable_mapping", "switch_encoder", "to_mapping"]

LOCAL = ("backend", "pretrained")
LATER = ("attn", "drop_path")
"""Fields that files of earlier versions lack. Unset, they are left out, so that fingerprints stay what they were."""


def field_names(config_class: Type[EncoderConfig]) -> list:
    """Names of a config's fields, in order."""
    return [field.name for field in dataclasses.fields(config_class)]


def to_mapping(config: EncoderConfig) -> Dict[str, Any]:
    """The config as a plain dict, ready for JSON or YAML."""
    return dataclasses.asdict(config)


def portable_mapping(config: EncoderConfig) -> Dict[str, Any]:
    """`to_mapping` without what belongs to the machine and not to the encoder: its fingerprint and files hold this.

    Example:
        >>> "backend" in portable_mapping(ENCODER_CONFIGS["rwkv7"](input_size=12, backend="torch"))
        False
    """
    plain = to_mapping(config)
    return {name: value for name, value in plain.items() if name not in LOCAL and (value or name not in LATER)}


def from_mapping(config_class: Type[EncoderConfig], values: Mapping[str, Any]) -> EncoderConfig:
    """A checked config from plain values.

    Args:
        config_class: the class to make.
        values: field name to value; what is left out keeps its default.

    Raises:
        ConfigError: an unknown field (naming the encoder it belongs to, or the nearest field), or a broken rule.

    Example:
        >>> from_mapping(ENCODER_CONFIGS["rwkv7"], {"input_size": 12}).name
        'rwkv7'
    """
    known = field_names(config_class)
    for key in values:
        if key not in known:
            raise _unknown_field(config_class, key, values[key])
    return config_class(**dict(values))


def switch_encoder(config: EncoderConfig, config_class: Type[EncoderConfig], **changes: Any) -> EncoderConfig:
    """The same encoder with another layer: what all encoders share is kept, the layer's own flags start afresh.

    Args:
        config: the config to leave.
        config_class: the config to enter.
        changes: fields of the new config to set.

    Raises:
        ConfigError: a change that is no field of ``config_class``, or a broken rule.

    Example:
        >>> old = ENCODER_CONFIGS["rwkv7"](input_size=12, hidden_size=32)
        >>> switch_encoder(old, ENCODER_CONFIGS["gated_deltanet"], use_gate=False).hidden_size
        32
    """
    shared = {name: getattr(config, name) for name in field_names(EncoderConfig) if name != "name"}
    return from_mapping(config_class, {**shared, **changes})


def _unknown_field(config_class: Type[EncoderConfig], key: Any, value: Any) -> ConfigError:
    mine = config_class.__dataclass_fields__["name"].default
    owners = [name for name, other in ENCODER_CONFIGS.items() if key in field_names(other)]
    if owners:
        rule = f"belongs to {' and '.join(map(repr, owners))}, not to {mine!r}"
        return config_error(f"encoder.{key}", rule, value, f"leave it out or set encoder.name to {owners[0]!r}")
    known = field_names(config_class)
    hint = nearest(key, known) or "known: " + ", ".join(known)
    return config_error(f"encoder.{key}", f"is not a field of encoder {mine!r}", value, hint)

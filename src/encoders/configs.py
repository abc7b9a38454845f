"""Configs of any strategy: from a mapping, from another encoder's config, and in Hydra's ConfigStore."""

import sys
from typing import Any, List, Mapping, Optional, Sequence

from cfg import encoder_mapping
from cfg.encoder import EncoderConfig
from cfg.validation import config_error
from encoders.factory import BUILT_IN, Registry, StrategyInfo, default_registry

__all__ = ["encoder_config", "register_plugin_configs", "switch_encoder"]


def encoder_config(values: Mapping[str, Any]) -> EncoderConfig:
    """A checked config from plain values, e.g. an entry of a host program's own configuration.

    Args:
        values: ``name``, and any fields of that strategy's config.

    Returns:
        The config, an instance of the strategy's ``config_class``.

    Raises:
        ConfigError: there is no name, a field is unknown or belongs to another encoder, or a field breaks its rule.
        UnknownEncoderError, PluginError: as `get_strategy`.

    Example:
        >>> encoder_config({"name": "gated_deltanet", "input_size": 3, "num_layers": 1}).num_layers
        1
    """
    name = values.get("name") if isinstance(values, Mapping) else None
    if not isinstance(name, str):
        raise config_error("encoder.name", "must be a string", name if isinstance(values, Mapping) else values)
    return encoder_mapping.from_mapping(default_registry().config_class(name), values)


def switch_encoder(config: EncoderConfig, name: str, **changes: Any) -> EncoderConfig:
    """The config of the same encoder with another strategy: shared fields stay, those of the layer get their defaults.

    Args:
        config: the config of any strategy.
        name: the name of the other strategy.
        changes: further fields to set.

    Returns:
        The new config.

    Raises:
        ConfigError: the other config has no such field, or a field breaks its rule.

    Example:
        >>> config = encoder_config({"name": "rwkv7", "input_size": 3, "hidden_size": 32})
        >>> switch_encoder(config, "gated_deltanet", use_gate=False).hidden_size
        32
    """
    return encoder_mapping.switch_encoder(config, default_registry().config_class(name), **changes)


def register_plugin_configs(
    asked: Optional[Sequence[str]] = None, registry: Optional[Registry] = None
) -> List[StrategyInfo]:
    """Register the configs of third-party encoders in Hydra's ConfigStore; call it before Hydra composes.

    Strategies are not imported, so torch is loaded only if a plugin's config module loads it. A plugin that is broken
    or blocked is not registered, unless the command line names it: then ``encoder=<name>`` composes, and building the
    encoder raises the error that says what is wrong with the plugin.

    Args:
        asked: names on the command line; if not given, they are read from ``sys.argv`` (``encoder=a,b``).
        registry: the registry to use; by default that of the process.

    Returns:
        The plugins that could not be registered.

    Example:
        >>> register_plugin_configs(asked=[], registry=Registry(plugins=[]))
        []
    """
    from cfg.store import register_encoder_config  # here, because hydra is slow to import and hosts need not have it

    registry = default_registry() if registry is None else registry
    asked = _names_asked_for(sys.argv[1:]) if asked is None else asked
    lost, stored = [], []
    for found in registry.failed():
        state = "blocked" if found.blocked else "failed"
        lost.append(StrategyInfo.of(found.plugin.name, found.plugin, state, found.failure or ""))
    for offer in registry.offers():
        if offer.plugin.distribution == BUILT_IN:
            continue  # cfg.store.register_encoder_configs does those
        try:
            register_encoder_config(offer.name, registry.config_class(offer.name), preset=not offer.preset)
            stored.append(offer.name)
        except Exception as problem:  # also the errors of OmegaConf about a dataclass that it does not support
            lost.append(StrategyInfo.of(offer.name, offer.plugin, "failed", f"{type(problem).__name__}: {problem}"))
    for row in lost:
        if row.name in asked and row.name not in stored and row.distribution != BUILT_IN:
            _register_placeholder(row.name)
    return lost


def _names_asked_for(arguments: Sequence[str]) -> List[str]:
    choices = [word.split("=", 1)[1] for word in arguments if word.startswith(("encoder=", "+encoder="))]
    return [name.strip() for choice in choices for name in choice.split(",")]


def _register_placeholder(name: str) -> None:
    from cfg.hydra_versions import store_config

    store_config(group="encoder", name=name, node={"name": name}, provider="encoders")

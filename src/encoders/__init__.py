"""Sequence encoders by name: pick a strategy, build an encoder from a config, encode a batch.

    >>> from encoders import build_encoder, get_strategy
    >>> config = get_strategy("gated_deltanet").config_class(input_size=12)
    >>> out = build_encoder(config)(torch.randn(4, 20, 12), lengths=[20, 7, 13, 1])

Importing this package imports neither torch nor any plugin; each name below is loaded when it is first used.
"""

import importlib
from typing import Any, List

_HOMES = {
    "Encoder": "encoders.stack",
    "EncoderOutput": "encoders.stack",
    "EncoderStrategy": "encoders.strategy",
    "InputError": "encoders.errors",
    "InputPipeline": "encoders.pipeline",
    "InputSchema": "encoders.schema",
    "NotFiniteError": "encoders.finite",
    "PluginError": "encoders.errors",
    "PreNormBlock": "encoders.blocks",
    "StackCall": "encoders.blocks",
    "SequenceClassifier": "encoders.estimators.classifier",
    "SequenceEncoder": "encoders.estimators.transformer",
    "SequenceRegressor": "encoders.estimators.regressor",
    "StrategyInfo": "encoders.factory",
    "UnknownEncoderError": "encoders.errors",
    "available_strategies": "encoders.factory",
    "build_encoder": "encoders.build",
    "check_finite": "encoders.finite",
    "encoder_config": "encoders.configs",
    "get_strategy": "encoders.factory",
    "hookimpl": "encoders.hookspecs",
    "load_encoder": "encoders.io",
    "register_plugin_configs": "encoders.configs",
    "register_strategy": "encoders.factory",
    "switch_encoder": "encoders.configs",
    "with_checkpoint_sizes": "encoders.build",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'encoders' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> List[str]:
    return sorted([*globals(), *__all__])

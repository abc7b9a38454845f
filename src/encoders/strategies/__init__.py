"""The built-in strategies, registered by import: they work from a bare checkout, without entry points."""

import functools
from typing import Any, List

from encoders.hookspecs import hookimpl
from encoders.plugins import BUILT_IN, Plugin
from myfla import __version__

__all__ = ["builtin_plugins"]

_BUILTINS = {
    "gated_deltanet": ("gated_deltanet:GatedDeltaNetEncoderStrategy", "GatedDeltaNetEncoderConfig"),
    "rwkv7": ("rwkv7:RWKV7EncoderStrategy", "RWKV7EncoderConfig"),
    "kda": ("family:KDAEncoderStrategy", "KDAEncoderConfig"),
    "delta_net": ("family:DeltaNetEncoderStrategy", "DeltaNetEncoderConfig"),
    "gated_deltaproduct": ("family:GatedDeltaProductEncoderStrategy", "GatedDeltaProductEncoderConfig"),
    "gdn2": ("family:GDN2EncoderStrategy", "GDN2EncoderConfig"),
    "comba": ("family:CombaEncoderStrategy", "CombaEncoderConfig"),
    "gla": ("family:GLAEncoderStrategy", "GLAEncoderConfig"),
    "mamba2": ("family:Mamba2EncoderStrategy", "Mamba2EncoderConfig"),
    "gru": ("rnn:GRUEncoderStrategy", "GRUEncoderConfig"),
    "lstm": ("rnn:LSTMEncoderStrategy", "LSTMEncoderConfig"),
}


class _Builtin:
    """The hook of one built-in; classes go by name, because the strategies import torch."""

    def __init__(self, name: str) -> None:
        self.name = name

    @hookimpl
    def register_encoders(self, register: Any) -> None:
        strategy, config = _BUILTINS[self.name]
        register(self.name, strategy=f"encoders.strategies.{strategy}", config=f"cfg.encoder:{config}",
                 preset=True)


def builtin_plugins() -> List[Plugin]:
    """One plugin per built-in strategy, so that each can be blocked by name."""
    return [Plugin(name, BUILT_IN, __version__, functools.partial(_Builtin, name)) for name in _BUILTINS]

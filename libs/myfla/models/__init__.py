"""Caches, and whole models with the official checkpoint names.

Models are imported when they are first used, since the layers they are made of import the caches from here.
"""

import importlib
from typing import Any, List

from myfla.models.utils import Cache

_WHERE = {
    "DeltaNetConfig": "delta_net",
    "DeltaNetForCausalLM": "delta_net",
    "DeltaNetModel": "delta_net",
    "GatedDeltaNetConfig": "gated_deltanet",
    "GatedDeltaNetForCausalLM": "gated_deltanet",
    "GatedDeltaNetModel": "gated_deltanet",
    "GatedDeltaProductConfig": "gated_deltaproduct",
    "GatedDeltaProductForCausalLM": "gated_deltaproduct",
    "GatedDeltaProductModel": "gated_deltaproduct",
    "KDAConfig": "kda",
    "KDAForCausalLM": "kda",
    "KDAModel": "kda",
    "RWKV7Config": "rwkv7",
    "RWKV7ForCausalLM": "rwkv7",
    "RWKV7Model": "rwkv7",
    "load_backbone": "auto",
    "load_config": "auto",
    "load_model": "auto",
}

__all__ = ["Cache", *_WHERE]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        found = getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
        globals()[name] = found
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> List[str]:
    return sorted([*globals(), *_WHERE])

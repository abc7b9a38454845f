"""The rules as functions of tensors. Each is imported from where it is defined when it is first used."""

import importlib
from typing import Any, List

_WHERE = {
    "chunk_comba": "comba",
    "chunk_delta_rule": "delta_rule",
    "chunk_dplr_delta_rule": "generalized_delta_rule",
    "chunk_gated_delta_rule": "gated_delta_rule",
    "chunk_gdn": "gated_delta_rule",
    "chunk_gated_delta_product": "gated_delta_product",
    "chunk_gdn2": "gdn2",
    "chunk_gla": "gla",
    "chunk_kda": "kda",
    "chunk_rwkv7": "rwkv7",
    "chunk_simple_gla": "simple_gla",
    "chunk_ssd": "ssd",
    "fused_chunk_delta_rule": "delta_rule",
    "fused_chunk_gla": "gla",
    "fused_chunk_simple_gla": "simple_gla",
    "fused_recurrent_comba": "comba",
    "fused_recurrent_delta_rule": "delta_rule",
    "fused_recurrent_dplr_delta_rule": "generalized_delta_rule",
    "fused_recurrent_gated_delta_rule": "gated_delta_rule",
    "fused_recurrent_gdn": "gated_delta_rule",
    "fused_recurrent_gdn2": "gdn2",
    "fused_recurrent_gla": "gla",
    "fused_recurrent_kda": "kda",
    "fused_recurrent_rwkv7": "rwkv7",
    "fused_recurrent_simple_gla": "simple_gla",
    "fused_recurrent_ssd": "ssd",
    "mamba_chunk_scan_combined": "ssd",
    "parallel_simple_gla": "simple_gla",
    "selective_state_update": "ssd",
}

__all__ = [*_WHERE]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        found = getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
        globals()[name] = found
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> List[str]:
    return sorted([*globals(), *_WHERE])

"""Kimi Delta Attention models (arXiv 2510.26692)."""

from myfla.models.kda.configuration_kda import KDAConfig
from myfla.models.kda.modeling_kda import KDAForCausalLM, KDAModel

__all__ = ["KDAConfig", "KDAForCausalLM", "KDAModel"]

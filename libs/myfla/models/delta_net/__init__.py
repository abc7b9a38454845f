"""DeltaNet models (arXiv 2406.06484)."""

from myfla.models.delta_net.configuration_delta_net import DeltaNetConfig
from myfla.models.delta_net.modeling_delta_net import DeltaNetForCausalLM, DeltaNetModel

__all__ = ["DeltaNetConfig", "DeltaNetForCausalLM", "DeltaNetModel"]

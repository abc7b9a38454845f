"""GatedDeltaNet models (arXiv 2412.06464)."""

from myfla.models.gated_deltanet.configuration_gated_deltanet import GatedDeltaNetConfig
from myfla.models.gated_deltanet.modeling_gated_deltanet import GatedDeltaNetForCausalLM, GatedDeltaNetModel

__all__ = ["GatedDeltaNetConfig", "GatedDeltaNetForCausalLM", "GatedDeltaNetModel"]

"""Gated DeltaProduct models (arXiv 2502.10297)."""

from myfla.models.gated_deltaproduct.configuration_gated_deltaproduct import GatedDeltaProductConfig
from myfla.models.gated_deltaproduct.modeling_gated_deltaproduct import (
    GatedDeltaProductForCausalLM,
    GatedDeltaProductModel,
)

__all__ = ["GatedDeltaProductConfig", "GatedDeltaProductForCausalLM", "GatedDeltaProductModel"]

"""Where flash-linear-attention 0.6 keeps its cache."""

from myfla.models.attention_state import update_attention_cache
from myfla.models.utils import Cache, FLACache, FLALayer, LegacyFLACache

__all__ = ["Cache", "FLACache", "FLALayer", "LegacyFLACache", "update_attention_cache"]

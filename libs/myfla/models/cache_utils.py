"""Where flash-linear-attention 0.6 keeps its cache."""

from myfla.models.utils import Cache, FLACache, FLALayer, LegacyFLACache

__all__ = ["Cache", "FLACache", "FLALayer", "LegacyFLACache"]

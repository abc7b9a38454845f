"""Where flash-linear-attention 0.6 keeps what adds `generate` to a model."""

from myfla.models.generation import GenerationMixin as FLAGenerationMixin

__all__ = ["FLAGenerationMixin"]

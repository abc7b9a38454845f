"""RWKV-7 models (arXiv 2503.14456)."""

from myfla.models.rwkv7.feed_forward import RWKV7FeedForward

__all__ = ["RWKV7FeedForward"]

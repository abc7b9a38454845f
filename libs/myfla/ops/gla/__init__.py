"""Gated linear attention (arXiv 2312.06635): a sum of key-value products with a decay for every key channel."""

from myfla.ops.gla.chunk import chunk_gla, fused_chunk_gla
from myfla.ops.gla.fused_recurrent import fused_recurrent_gla
from myfla.ops.gla.naive import naive_recurrent_gla

__all__ = ["chunk_gla", "fused_chunk_gla", "fused_recurrent_gla", "naive_recurrent_gla"]

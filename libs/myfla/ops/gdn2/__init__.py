"""Gated DeltaNet 2's rule: erasing and writing with separate gates, channel by channel."""

from myfla.ops.gdn2.chunk import chunk_gdn2
from myfla.ops.gdn2.fused_recurrent import fused_recurrent_gdn2
from myfla.ops.gdn2.naive import naive_chunk_gdn2, naive_recurrent_gdn2

__all__ = ["chunk_gdn2", "fused_recurrent_gdn2", "naive_chunk_gdn2", "naive_recurrent_gdn2"]

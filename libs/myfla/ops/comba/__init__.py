"""Comba's rule (arXiv 2506.02475): the gated delta rule with a separate key for erasing."""

from myfla.ops.comba.chunk import chunk_comba
from myfla.ops.comba.fused_recurrent import fused_recurrent_comba
from myfla.ops.comba.naive import naive_chunk_comba, naive_recurrent_comba

__all__ = ["chunk_comba", "fused_recurrent_comba", "naive_chunk_comba", "naive_recurrent_comba"]

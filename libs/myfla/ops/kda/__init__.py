"""Kimi Delta Attention's rule (arXiv 2510.26692): the delta rule with a decay for every key channel."""

from myfla.ops.kda.chunk import chunk_kda
from myfla.ops.kda.fused_recurrent import fused_recurrent_kda
from myfla.ops.kda.gate import fused_kda_gate
from myfla.ops.kda.naive import naive_chunk_kda, naive_recurrent_kda

__all__ = ["chunk_kda", "fused_kda_gate", "fused_recurrent_kda", "naive_chunk_kda", "naive_recurrent_kda"]

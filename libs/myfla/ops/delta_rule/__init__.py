"""The delta rule (DeltaNet, arXiv 2406.06484): the gated delta rule without decay."""

from myfla.ops.delta_rule.chunk import chunk_delta_rule, fused_chunk_delta_rule
from myfla.ops.delta_rule.fused_recurrent import fused_recurrent_delta_rule

__all__ = ["chunk_delta_rule", "fused_chunk_delta_rule", "fused_recurrent_delta_rule"]

"""The gated delta rule (Gated DeltaNet, arXiv 2412.06464): naive, chunked and recurrent, all the same function."""

from myfla.ops.gated_delta_rule.chunk import chunk_gated_delta_rule, chunk_gdn
from myfla.ops.gated_delta_rule.fused_recurrent import fused_recurrent_gated_delta_rule, fused_recurrent_gdn
from myfla.ops.gated_delta_rule.naive import naive_chunk_gated_delta_rule, naive_recurrent_gated_delta_rule

__all__ = [
    "chunk_gated_delta_rule",
    "chunk_gdn",
    "fused_recurrent_gated_delta_rule",
    "fused_recurrent_gdn",
    "naive_chunk_gated_delta_rule",
    "naive_recurrent_gated_delta_rule",
]

"""The delta rule with a diagonal-plus-low-rank transition (RWKV-7, arXiv 2503.14456): naive, chunked, recurrent."""

from myfla.ops.generalized_delta_rule.dplr.chunk import chunk_dplr_delta_rule
from myfla.ops.generalized_delta_rule.dplr.fused_recurrent import fused_recurrent_dplr_delta_rule

__all__ = ["chunk_dplr_delta_rule", "fused_recurrent_dplr_delta_rule"]

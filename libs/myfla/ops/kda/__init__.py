"""Kimi Delta Attention's rule (arXiv 2510.26692): the delta rule with a decay for every key channel."""

from myfla.ops.kda.gate import fused_kda_gate

__all__ = ["fused_kda_gate"]

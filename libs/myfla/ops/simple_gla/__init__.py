"""Linear attention with one decay for each head: RetNet, and Mamba-2's state space duality."""

from myfla.ops.simple_gla.chunk import chunk_simple_gla
from myfla.ops.simple_gla.fused_chunk import fused_chunk_simple_gla
from myfla.ops.simple_gla.fused_recurrent import fused_recurrent_simple_gla
from myfla.ops.simple_gla.naive import (
    naive_chunk_simple_gla,
    naive_parallel_simple_gla,
    naive_recurrent_simple_gla,
)
from myfla.ops.simple_gla.parallel import parallel_simple_gla

__all__ = [
    "chunk_simple_gla", "fused_chunk_simple_gla", "fused_recurrent_simple_gla", "naive_chunk_simple_gla",
    "naive_parallel_simple_gla", "naive_recurrent_simple_gla", "parallel_simple_gla",
]  # fmt: skip

"""The state space dual of Mamba-2 (arXiv 2405.21060): a sum of inputs that decays by one number for each head and
token."""

from myfla.ops.ssd.chunk import chunk_ssd
from myfla.ops.ssd.fused_recurrent import fused_recurrent_ssd
from myfla.ops.ssd.mamba import mamba_chunk_scan_combined
from myfla.ops.ssd.naive import naive_recurrent_ssd
from myfla.ops.ssd.state_update import selective_state_update

__all__ = [
    "chunk_ssd", "fused_recurrent_ssd", "mamba_chunk_scan_combined", "naive_recurrent_ssd", "selective_state_update",
]  # fmt: skip

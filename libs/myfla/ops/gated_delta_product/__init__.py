"""The gated delta product (arXiv 2502.10297): several steps of the delta rule for each token."""

from myfla.ops.gated_delta_product.chunk import chunk_gated_delta_product
from myfla.ops.gated_delta_product.fused_recurrent import fused_recurrent_gated_delta_product

__all__ = ["chunk_gated_delta_product", "fused_recurrent_gated_delta_product"]

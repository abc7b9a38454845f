"""Whether a call can take a form of half-precision products."""

from typing import Optional, Sequence

import torch

from myfla.ops.common.half_products import has_matrix_units
from myfla.utils.dtypes import accumulation_dtype
from myfla.utils.graph_op import takes_graph_ops
from myfla.utils.tracing import tracing

__all__ = ["fits_matrix_units"]


def fits_matrix_units(tokens: Sequence[torch.Tensor], *more: Optional[torch.Tensor]) -> bool:
    """Whether such a form serves: bfloat16 on a GPU, nothing in float64, and nobody watching but a compiler that takes
    it as one operation.

    float16 does not hold the range of sums over a chunk; it keeps float32 products.

    Args:
        tokens: what is multiplied.
        more: decays, strengths and states, which may be float32.
    """
    one = tokens[0]
    if (tracing() and not takes_graph_ops()) or not has_matrix_units(one.device) or one.numel() == 0:
        return False
    return all(x.dtype == torch.bfloat16 for x in tokens) and accumulation_dtype(*tokens, *more) == torch.float32

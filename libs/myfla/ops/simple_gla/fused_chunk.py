"""`chunk_simple_gla` under the name, and with the order of arguments, of another official kernel."""

from typing import Optional, Tuple

import torch

from myfla.ops.simple_gla.chunk import chunk_simple_gla

__all__ = ["fused_chunk_simple_gla"]


def fused_chunk_simple_gla(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: Optional[torch.Tensor] = None,
    g_gamma: Optional[torch.Tensor] = None,
    scale: Optional[float] = None,
    initial_state: Optional[torch.Tensor] = None,
    output_final_state: bool = False,
    cu_seqlens: Optional[torch.Tensor] = None,
    *,
    backend: str = "auto",
) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
    """`chunk_simple_gla` with the arguments in the order of another official kernel.

    Args:
        q, k, v, g, g_gamma, scale, initial_state, output_final_state, cu_seqlens, backend: as for `chunk_simple_gla`.

    Returns:
        As `chunk_simple_gla`: outputs ``[B, T, H, V]``, and the final state ``[N, H, K, V]`` or None.

    Raises:
        As `chunk_simple_gla`.

    Example:
        >>> x = torch.ones(1, 2, 1, 1)
        >>> fused_chunk_simple_gla(x, x, 3 * x)[0].flatten().tolist()
        [3.0, 6.0]
    """
    return chunk_simple_gla(
        q, k, v, g, g_gamma, scale, initial_state, output_final_state, cu_seqlens=cu_seqlens, backend=backend
    )

"""`chunk_comba`: the form for training and long inputs."""

from typing import Optional, Tuple

import torch

from myfla.ops.comba.as_dplr import run_comba

__all__ = ["chunk_comba"]

NAME = "chunk_comba"


def chunk_comba(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    p: Optional[torch.Tensor],
    g: torch.Tensor,
    beta: Optional[torch.Tensor] = None,
    scale: Optional[float] = None,
    initial_state: Optional[torch.Tensor] = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: Optional[torch.Tensor] = None,
    cu_seqlens_cpu: Optional[torch.Tensor] = None,
    *,
    chunk_size: Optional[int] = None,
    backend: str = "auto",
) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
    """Comba's rule, many tokens at a time.

    ``S <- exp(g) S + k (beta (v - S^T p))^T;  o = scale S^T q`` for every token; p reads the state before it decays
    (arXiv 2506.02475). Sums and states are float32, or float64 if any input is.

    Args:
        q, k: ``[B, T, H, K]``.
        v: ``[B, T, HV, V]``; HV is a multiple of H, value head i reads query head ``i // (HV / H)``.
        p: ``[B, T, H, K]`` keys that erase; k if None.
        g: ``[B, T, HV]`` log decay.
        beta: ``[B, T, HV]`` write strength; ones by default.
        scale: factor on q; ``K ** -0.5`` by default.
        initial_state: ``[N, HV, K, V]``, zeros by default. Never written.
        output_final_state: also return the state after the last token of each sequence.
        use_qk_l2norm_in_kernel: normalise q, k and p to length one first.
        cu_seqlens: ``[N + 1]`` int32 or int64, sequences packed in one row (B = 1); empty ones are fine.
        cu_seqlens_cpu: official name; changes nothing here.
        chunk_size: tokens in a chunk, 16, 32 or 64; chosen by K and T if not given. Changes rounding only.
        backend: which code computes the result, see `myfla.backends`.

    Returns:
        o ``[B, T, HV, V]`` in q's dtype; the final states in float32 (or float64), or None.

    Raises:
        ValueError: a shape, head count, offset or option that does not fit; the message says which.
        BackendError: a backend that is unknown or cannot compute this here.

    Example:
        >>> x = torch.ones(1, 2, 1, 1)
        >>> chunk_comba(x, x, 3 * x, x, 0 * x[..., 0], x[..., 0])[0].flatten().tolist()
        [3.0, 3.0]
    """
    return run_comba(
        NAME, "chunk", q, k, v, p, g, beta, initial_state, cu_seqlens, scale=scale,
        output_final_state=output_final_state, l2norm_qk=use_qk_l2norm_in_kernel, backend=backend,
        chunk_size=chunk_size,
    )  # fmt: skip

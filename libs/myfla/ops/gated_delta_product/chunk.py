"""`chunk_gated_delta_product`: the form for training and long inputs."""

from typing import Any, Optional, Tuple

import torch

from myfla.ops.gated_delta_product.steps import run_steps
from myfla.utils.errors import value_error

__all__ = ["chunk_gated_delta_product"]

NAME = "chunk_gated_delta_product"


def chunk_gated_delta_product(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: Optional[torch.Tensor],
    beta: torch.Tensor,
    num_householder: int,
    scale: Optional[float] = None,
    initial_state: Optional[torch.Tensor] = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: Optional[torch.Tensor] = None,
    cu_seqlens_cpu: Optional[torch.Tensor] = None,
    cp_context: Any = None,
    *,
    chunk_size: Optional[int] = None,
    backend: str = "auto",
) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
    """Several steps of the delta rule for each token, many tokens at a time.

    ``S <- exp(g) S;  for j in 1..n: S <- S + k_j (beta_j (v_j - S^T k_j))^T;  o = scale S^T q`` for every token, with
    ``n = num_householder`` (Gated DeltaProduct, arXiv 2502.10297). Sums and states are float32, or float64 if any
    input is. All dtypes are accepted, also float32, which fla does not accept.

    Args:
        q: ``[B, T, H, K]``.
        k: ``[B, n T, H, K]``, the steps of a token next to each other.
        v: ``[B, n T, HV, V]``; HV is a multiple of H.
        g: ``[B, T, HV]`` log decay of each token, or None for none.
        beta: ``[B, n T, HV]`` write strength.
        num_householder: n.
        scale: factor on q; ``K ** -0.5`` by default.
        initial_state: ``[N, HV, K, V]``, zeros by default. Never written.
        output_final_state: also return the state after the last token of each sequence.
        use_qk_l2norm_in_kernel: normalise q and k to length one first.
        cu_seqlens: ``[N + 1]`` int32 or int64 offsets of tokens, for sequences packed in one row (B = 1).
        cu_seqlens_cpu: official name; changes nothing here.
        cp_context: must be None; there is no context parallelism.
        chunk_size: steps in a chunk, 16, 32 or 64; chosen by K and T if not given. Changes rounding only.
        backend: which code computes the result, see `myfla.backends`.

    Returns:
        o ``[B, T, HV, V]`` in q's dtype; the final states in float32 (or float64), or None.

    Raises:
        ValueError: a shape, head count, offset or option that does not fit; the message says which.
        BackendError: a backend that is unknown or cannot compute this here.

    Example:
        >>> q, k, v = torch.ones(1, 3, 1, 1), torch.ones(1, 6, 1, 1), torch.ones(1, 6, 1, 2)
        >>> chunk_gated_delta_product(q, k, v, None, torch.ones(1, 6, 1), num_householder=2)[0].shape
        torch.Size([1, 3, 1, 2])
    """
    if cp_context is not None:
        raise value_error(NAME, "cp_context", "must be None", type(cp_context).__name__, "split the batch instead")
    return run_steps(
        NAME, "chunk", q, k, v, g, beta, num_householder, initial_state, cu_seqlens, scale=scale,
        output_final_state=output_final_state, l2norm=use_qk_l2norm_in_kernel,
        chunk_size=chunk_size, backend=backend,
    )  # fmt: skip

"""`chunk_ssd`: the form for training and long inputs."""

import math
from typing import Optional, Tuple

import torch

from myfla.ops.ssd.inputs import check_ssd, run_ssd

__all__ = ["chunk_ssd"]

NAME = "chunk_ssd"


def chunk_ssd(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: Optional[torch.Tensor] = None,
    z: Optional[torch.Tensor] = None,
    dt_bias: Optional[torch.Tensor] = None,
    dt_softplus: bool = False,
    dt_limit: Tuple[float, float] = (0.0, math.inf),
    initial_state: Optional[torch.Tensor] = None,
    output_final_state: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Optional[torch.Tensor] = None,
    *,
    chunk_size: Optional[int] = None,
    backend: str = "auto",
) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
    """The state space dual of Mamba-2 (arXiv 2405.21060), many tokens at a time.

    For every token and head, with ``dt <- clamp(softplus(dt + dt_bias), *dt_limit)``::

        S <- exp(dt A) S + B (dt x)^T;  y = (S^T C + D x) silu(z)

    It is `simple_gla` with queries C, keys B, values ``dt x`` and log decays ``dt A``. Sums and states are float32, or
    float64 if any input is.

    Args:
        x: ``[B, T, HV, V]`` inputs.
        dt: ``[B, T, HV]`` time steps.
        A: ``[HV]``, negative.
        B, C: ``[B, T, H, K]``: what is written and what is read. HV is a multiple of H, the number of groups; head i
            uses group ``i // (HV / H)``.
        D: ``[HV]`` or ``[HV, V]``: weight of the skip connection; none by default.
        z: ``[B, T, HV, V]`` gate of the outputs; none by default.
        dt_bias: ``[HV]``; none by default.
        dt_softplus: see above.
        dt_limit: least and largest time step.
        initial_state: ``[N, HV, K, V]``, zeros by default. Never written.
        output_final_state: also return the state after the last token of each sequence.
        state_v_first: states, in and out, are ``[N, HV, V, K]``, as Mamba's own code has them.
        cu_seqlens: ``[N + 1]`` int32 or int64, sequences packed in one row (B = 1); empty ones are fine.
        chunk_size: tokens in a chunk, 16, 32 or 64; chosen by K and T if not given. Changes rounding only.
        backend: which code computes the result, see `myfla.backends`.

    Returns:
        y ``[B, T, HV, V]`` in the dtype of x; the final states in float32 (or float64), or None.

    Raises:
        ValueError: a shape, head count, offset or option that does not fit; the message says which.
        BackendError: a backend that is unknown or cannot compute this here.

    Example:
        >>> x, decay = torch.ones(1, 2, 1, 1), torch.zeros(1)
        >>> chunk_ssd(3 * x, x[..., 0], decay, x, x)[0].flatten().tolist()
        [3.0, 6.0]
    """
    ssd = check_ssd(NAME, x, dt, A, B, C, D, z, dt_bias, dt_softplus, dt_limit, initial_state)
    return run_ssd(
        NAME, "chunk", ssd, initial_state, cu_seqlens, state_v_first=state_v_first,
        output_final_state=output_final_state, chunk_size=chunk_size, backend=backend,
    )  # fmt: skip

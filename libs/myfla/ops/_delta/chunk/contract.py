"""The recurrence over chunks that every family prepares for.

For one chunk of one head, with rows for tokens and the incoming state ``h [K, V]``::

    v_new = A_inv (v_in - k_in h)            A_inv = (I + L)^-1;   without a delta rule: v_new = v_in
    o     = q_in h + A_qk v_new (+ o_v)
    h'    = g_last h + k_out^T v_new (+ kv)

(the WY / UT form of DeltaNet, arXiv 2406.06484; ``u = A_inv v_in`` and ``w = A_inv k_in`` are its usual names). Back::

    dv_new = A_qk^T do + k_out dh'           dv_in = A_inv^T dv_new
    dh     = g_last dh' + q_in^T do - k_in^T dv_in
    dq_in  = do h^T,   dk_in = -dv_in h^T,   dk_out = v_new dh'^T,   dg_last = sum of h * dh'
    dA_qk  = do v_new^T,   dL = -dv_in v_new^T                           each cut to its triangle
"""

from typing import Any, NamedTuple, Optional

import torch


class Chunks(NamedTuple):
    """What a family makes of its tokens; M chunks of C tokens."""

    g_last: torch.Tensor  # [M, 1 or K, 1]  decay over the whole chunk
    qk_in: torch.Tensor  # [M, 2C, K]  q_in over k_in, decayed from the chunk's start; [M, C, K]: queries only
    k_out: torch.Tensor  # [M, C, K]  keys decayed to the chunk's end
    A_qk: torch.Tensor  # [M, C, C]  what each query reads of its own chunk: a lower triangle
    v_in: torch.Tensor  # [M, C, V]  may be written over
    system: Optional[torch.Tensor] = None  # [M, C, C]  L, read below the diagonal only; None: no delta rule
    kv: Optional[torch.Tensor] = None  # [M, K, V]  written whatever the state is
    o_v: Optional[torch.Tensor] = None  # [M, C, V]  read whatever the state is
    extra: Any = None  # what the family's own `prepare_bwd` wants to see again

    @property
    def q_in(self) -> torch.Tensor:
        """``[M, C, K]``, the upper half of ``qk_in``."""
        return self.qk_in[..., : self.k_out.shape[-2], :]

    @property
    def k_in(self) -> torch.Tensor:
        """``[M, C, K]``, the lower half of ``qk_in``; empty without a delta rule."""
        return self.qk_in[..., self.k_out.shape[-2] :, :]


class ChunkGrads(NamedTuple):
    """Gradients of `Chunks`, for the family to take back to its tokens. Buffers: may be written over."""

    out: torch.Tensor  # [M, 2C, V]  do over -dv_in; [M, C, V] without a delta rule. ``out v_new^T``: of A_qk over L
    v_in: torch.Tensor  # [M, C, V]
    qk_in: torch.Tensor  # [M, 2C or C, K]
    k_out: torch.Tensor  # [M, C, K]
    g_last: torch.Tensor  # [M, 1 or K, 1]
    kv: Optional[torch.Tensor]  # [M, K, V]  of the state after each chunk; None where the family has no kv
    v_new: torch.Tensor  # [M, C, V]  given, not to be written

"""What both forms of the gated delta rule check and prepare."""

import warnings
from typing import NamedTuple, Optional

import torch

from myfla.ops.gated_delta_rule.gate import beta_sigmoid, naive_gdn_gate
from myfla.utils.dtypes import accumulation_dtype
from myfla.utils.errors import unknown_keyword, value_error
from myfla.utils.l2norm import l2norm
from myfla.utils.varlen import check_cu_seqlens


class Prepared(NamedTuple):
    """Inputs with everything "in kernel" applied."""

    q: torch.Tensor  # [B, T, H, K]
    k: torch.Tensor  # [B, T, H, K]
    v: torch.Tensor  # [B, T, HV, V]
    g: Optional[torch.Tensor]  # [B, T, HV]
    beta: torch.Tensor  # [B, T, HV] (or [B, T, HV, V])
    initial_state: Optional[torch.Tensor]  # [N, HV, K, V]
    scale: float
    sequences: int  # N
    dtype: torch.dtype  # what is computed in


def check_shapes(who: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    """Ranks, heads, lengths and number formats of q, k and v."""
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not isinstance(x, torch.Tensor) or not x.is_floating_point():
            raise value_error(who, name, "must be a floating point tensor", getattr(x, "dtype", type(x).__name__))
        if x.dim() != 4:
            raise value_error(who, name, "must have shape [B, T, heads, size]", tuple(x.shape))
    if q.shape[2] != k.shape[2]:
        raise value_error(who, "k", f"must have as many heads as q, H={q.shape[2]}", k.shape[2])
    if k.shape != q.shape:
        raise value_error(who, "k", f"must have the shape of q, {tuple(q.shape)}", tuple(k.shape))
    if v.shape[:2] != q.shape[:2]:
        raise value_error(who, "v", f"must have the batch and length of q, {tuple(q.shape[:2])}", tuple(v.shape[:2]))
    heads, value_heads = q.shape[2], v.shape[2]
    if heads == 0 or value_heads == 0 or value_heads % heads:
        raise value_error(who, "v", f"must have a multiple of q's H={heads} heads", value_heads)
    for name, x in (("k", k), ("v", v)):
        if x.device != q.device:
            raise value_error(who, name, f"must be on the device of q, {q.device}", x.device)


def check_per_token(who: str, name: str, x: torch.Tensor, v: torch.Tensor, *more: int) -> None:
    """A tensor ``[B, T, HV, *more]``."""
    want = tuple(v.shape[:3]) + more
    if not isinstance(x, torch.Tensor) or not x.is_floating_point():
        raise value_error(who, name, "must be a floating point tensor", getattr(x, "dtype", type(x).__name__))
    if tuple(x.shape) != want:
        raise value_error(who, name, f"must have shape {want}", tuple(x.shape))


def take_legacy_keywords(who: str, legacy: dict, state_v_first: bool, known: tuple) -> bool:
    """Read the official keywords that have no name of their own any more; returns ``state_v_first``."""
    for name in legacy:
        if name not in ("transpose_state_layout", "head_first"):
            raise unknown_keyword(who, name, known)
    if legacy.get("head_first"):
        raise value_error(who, "head_first", "is not supported", True, "pass tensors as [B, T, H, D]")
    if "transpose_state_layout" in legacy:
        if state_v_first:
            raise value_error(who, "transpose_state_layout", "is the old name of state_v_first", "both", "pass one")
        warnings.warn(f"{who}: transpose_state_layout is now state_v_first", DeprecationWarning, stacklevel=3)
        return bool(legacy["transpose_state_layout"])
    return state_v_first


def prepare(
    who: str,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: Optional[torch.Tensor],
    beta: torch.Tensor,
    scale: Optional[float],
    initial_state: Optional[torch.Tensor],
    state_v_first: bool,
    cu_seqlens: Optional[torch.Tensor],
    use_qk_l2norm_in_kernel: bool,
    use_gate_in_kernel: bool,
    A_log: Optional[torch.Tensor],
    dt_bias: Optional[torch.Tensor],
    use_beta_sigmoid_in_kernel: bool,
    allow_neg_eigval: bool,
) -> Prepared:
    """Check what is left to check, then normalise, gate and turn the state K-first; differentiable throughout."""
    value_heads, key, value = v.shape[2], k.shape[3], v.shape[3]
    if cu_seqlens is None:
        sequences = q.shape[0]
    else:
        sequences = check_cu_seqlens(who, cu_seqlens, q.shape[0], q.shape[1])
    if initial_state is not None:
        shape = (sequences, value_heads) + ((value, key) if state_v_first else (key, value))
        if tuple(initial_state.shape) != shape:
            layout = "[N, HV, V, K]" if state_v_first else "[N, HV, K, V]"
            raise value_error(who, "initial_state", f"must have shape {layout} = {shape}", tuple(initial_state.shape))
        if state_v_first:
            initial_state = initial_state.transpose(2, 3)
    if allow_neg_eigval and not use_beta_sigmoid_in_kernel:
        raise value_error(
            who, "allow_neg_eigval", "doubles the sigmoid in the op and needs use_beta_sigmoid_in_kernel=True", True,
            "or pass beta in (0, 2) and leave allow_neg_eigval out",
        )
    if use_gate_in_kernel:
        if A_log is None:
            raise value_error(who, "A_log", "is required with use_gate_in_kernel=True", None, "pass A_log [HV]")
        if g is None:
            raise value_error(who, "g", "is required with use_gate_in_kernel=True", None, "pass the pre-activation")
        for name, x in (("A_log", A_log), ("dt_bias", dt_bias)):
            if x is not None and tuple(x.shape) != (value_heads,):
                raise value_error(who, name, f"must have shape [HV] = {(value_heads,)}", tuple(x.shape))
        g = naive_gdn_gate(g, A_log, dt_bias)
    if use_qk_l2norm_in_kernel:
        wide = accumulation_dtype(q, k)
        q, k = l2norm(q, output_dtype=wide), l2norm(k, output_dtype=wide)
    if use_beta_sigmoid_in_kernel:
        beta = beta_sigmoid(beta, allow_neg_eigval)
    dtype = accumulation_dtype(q, k, v, g, beta, initial_state)
    scale = key**-0.5 if scale is None else float(scale)
    return Prepared(q, k, v, g, beta, initial_state, scale, sequences, dtype)

"""The log decays of `simple_gla`: of every token, of every head, of both or of none."""

from typing import Optional

import torch

from myfla.utils.dtypes import accumulation_dtype
from myfla.utils.errors import value_error
from myfla.utils.tensors import check_tensor

__all__ = ["given_decays"]


def given_decays(
    who: str, v: torch.Tensor, g: Optional[torch.Tensor], g_gamma: Optional[torch.Tensor]
) -> torch.Tensor:
    """The log decay of every token.

    Args:
        who: the op's name.
        v: ``[B, T, HV, V]``.
        g: ``[B, T, HV]`` or None.
        g_gamma: ``[HV]`` or None.

    Returns:
        g itself, or a tensor of its shape.
    """
    check_tensor(who, "v", v)
    if v.dim() != 4:
        raise value_error(who, "v", "must have shape [B, T, heads, size] with sizes from 1", tuple(v.shape))
    if g_gamma is None:
        return torch.zeros(v.shape[:3], dtype=accumulation_dtype(v), device=v.device) if g is None else g
    check_tensor(who, "g_gamma", g_gamma, v, "v")
    if g_gamma.shape != v.shape[2:3] or not g_gamma.is_floating_point():
        got = f"{g_gamma.dtype} {tuple(g_gamma.shape)}"
        raise value_error(who, "g_gamma", f"must be floating point, of shape [HV] = {(v.shape[2],)}", got)
    if g is None:
        return g_gamma.to(accumulation_dtype(g_gamma, v)).expand(v.shape[:3])
    check_tensor(who, "g", g, v, "v")
    if g.shape != v.shape[:3]:
        raise value_error(who, "g", f"must have shape {tuple(v.shape[:3])}", tuple(g.shape))
    return g + g_gamma

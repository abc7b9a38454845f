"""Causal softmax attention over rows that are padded at the front, by PyTorch's own kernel where there is one."""

import math
from typing import Optional

import torch
import torch.nn.functional as F

from myfla.utils.dtypes import accumulation_dtype
from myfla.utils.tracing import transforming

__all__ = ["attend", "visible"]

_kernel = getattr(F, "scaled_dot_product_attention", None)  # PyTorch 2.0


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Optional[torch.Tensor] = None) -> torch.Tensor:
    """``softmax(q k^T / sqrt(D)) v``, every query with the keys that it may see.

    Args:
        q: ``[B, T, H, D]``.
        k, v: ``[B, S, HK, D]``; H is a multiple of HK, query head i reads key head ``i // (H / HK)``.
        mask: ``[B or 1, T, S]`` bool, True where a query sees a key, at least one for each; without it T = S and
            queries see the keys up to their own place.

    Returns:
        ``[B, T, H, D]``.

    Example:
        >>> x = torch.eye(2).view(1, 2, 1, 2)
        >>> attend(x, x, x)[0, 0].tolist()
        [[1.0, 0.0]]
    """
    group = q.shape[2] // k.shape[2]
    if group > 1:
        k, v = k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    mask = None if mask is None else mask.unsqueeze(1)
    if _kernel is not None and not transforming():
        o = _kernel(q, k, v, attn_mask=mask, is_causal=mask is None)
    else:
        o = _formula(q, k, v, mask)
    return o.transpose(1, 2)


def visible(
    queries: int, keys: int, real: Optional[torch.Tensor], window: Optional[int], device: torch.device
) -> Optional[torch.Tensor]:
    """Which keys the last ``queries`` of ``keys`` places see.

    Args:
        queries, keys: T and S.
        real: ``[B]``: how many of the last places hold tokens; None for all. Every place sees itself.
        window: number of places that a query sees, including its own; None for all before it.

    Returns:
        ``[B or 1, T, S]`` bool; None where `attend` needs none.

    Example:
        >>> visible(2, 3, torch.tensor([2]), None, torch.device("cpu")).int().tolist()
        [[[0, 1, 0], [0, 1, 1]]]
    """
    if real is None and window is None and queries == keys:
        return None
    key = torch.arange(keys, device=device)
    query = torch.arange(keys - queries, keys, device=device)[:, None]
    seen = key <= query
    if window is not None:
        seen = seen & (key > query - window)
    if real is None:
        return seen[None]
    return seen & ((key >= keys - real.to(device)[:, None, None]) | (key == query))


def _formula(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Optional[torch.Tensor]) -> torch.Tensor:
    wide = accumulation_dtype(q, k, v)
    if mask is None:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    scores = (q.to(wide) @ k.to(wide).transpose(2, 3)) / math.sqrt(q.shape[3])
    return (scores.masked_fill(~mask, -math.inf).softmax(-1) @ v.to(wide)).to(q.dtype)

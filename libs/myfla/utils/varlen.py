"""Packed sequences: the check of `cu_seqlens` that convolution, token shift, ops and layers share."""

from typing import Any, Optional

import torch

from myfla.utils.errors import value_error
from myfla.utils.tracing import tracing


def check_cu_seqlens(
    who: str, cu_seqlens: Any, batch: int, tokens: int, data: Optional[torch.Tensor] = None
) -> int:
    """Refuse offsets that do not describe a packed batch ``[1, tokens, ...]``.

    Empty sequences (two equal offsets) are fine. The values are read once, which waits for the device. Under a compiler
    or a function transform they cannot be read and are not checked.

    Args:
        who: the caller, for the message.
        cu_seqlens: int32 or int64 tensor ``[N + 1]``: where each of N sequences starts, and the end of the last.
        batch: size of the data's first axis; packed data has 1.
        tokens: size of the data's second axis.
        data: the packed data; if it has values, the offsets must have values too.

    Returns:
        N, the number of sequences.

    Raises:
        ValueError: not an integer vector, ``batch`` is not 1, or the offsets do not start at 0, decrease, or do not
            end at ``tokens``.

    Example:
        >>> check_cu_seqlens("conv", torch.tensor([0, 2, 2, 5]), batch=1, tokens=5)
        3
    """
    if not isinstance(cu_seqlens, torch.Tensor):
        raise value_error(who, "cu_seqlens", "must be a tensor [N+1] of int32 or int64", type(cu_seqlens).__name__)
    if cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise value_error(who, "cu_seqlens", "must be int32 or int64", cu_seqlens.dtype, "use cu_seqlens.long()")
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 1:
        raise value_error(who, "cu_seqlens", "must have shape [N+1]", tuple(cu_seqlens.shape))
    if batch != 1:
        raise value_error(who, "cu_seqlens", "needs data packed as [1, total, ...]", f"batch size {batch}",
                          "flatten the batch to one row, or leave cu_seqlens out")
    if data is not None and cu_seqlens.device.type == "meta" != data.device.type:
        raise value_error(who, "cu_seqlens", f"must be on the device of the data, {data.device}", "meta")
    if cu_seqlens.device.type != "meta" and not tracing():
        _check_values(who, cu_seqlens.tolist(), tokens)
    return cu_seqlens.shape[0] - 1


def _check_values(who: str, offsets: list, tokens: int) -> None:
    if offsets[0] != 0:
        raise value_error(who, "cu_seqlens", "must start at 0", offsets[0])
    for i in range(1, len(offsets)):
        if offsets[i] < offsets[i - 1]:
            got = f"{offsets[i]} after {offsets[i - 1]} at position {i}"
            raise value_error(who, "cu_seqlens", "must not decrease", got)
    if offsets[-1] != tokens:
        raise value_error(who, "cu_seqlens", f"must end at the number of tokens, {tokens}", offsets[-1])

"""Packed sequences in transformers: the keywords of a model, and reading them in its functions."""

from typing import Any, Dict, Mapping, Optional

import torch

from myfla.utils.errors import value_error

__all__ = ["packed_kwargs", "packed_offsets"]


def packed_kwargs(position_ids: torch.Tensor) -> Dict[str, Any]:
    """Keywords for a model's forward pass with sequences that are packed in one row.

    With position ids alone, transformers separates the sequences in its attention layers, but not in its gated delta
    rule, which needs the offsets, and not in the convolution, which needs the sequence numbers.
    (`transformers.DataCollatorWithFlattening` gives the same with ``return_flash_attn_kwargs=True,
    return_seq_idx=True``.)

    Args:
        position_ids: ``[1, T]`` integers that start again at 0 for every sequence, e.g. ``[[0, 1, 2, 0, 1]]``.

    Returns:
        ``position_ids``, ``seq_idx [1, T]``, ``cu_seq_lens_q`` and ``cu_seq_lens_k`` ``[N + 1]`` (int32),
        ``max_length_q``, ``max_length_k``, and ``use_cache=False``: with a cache, transformers' attention masks would
        let the sequences see each other.

    Raises:
        ValueError: not one row of integers.

    Example:
        >>> packed_kwargs(torch.tensor([[0, 1, 2, 0, 1]]))["cu_seq_lens_q"].tolist()
        [0, 3, 5]
    """
    if position_ids.dim() != 2 or position_ids.shape[0] != 1 or position_ids.is_floating_point():
        got = f"{position_ids.dtype} {tuple(position_ids.shape)}"
        raise value_error("packed_kwargs", "position_ids", "must be integers [1, T]", got, "pack into one row")
    starts = torch.ones_like(position_ids, dtype=torch.bool)
    starts[:, 1:] = position_ids[:, 1:] != position_ids[:, :-1] + 1
    first = starts[0].nonzero().flatten()
    offsets = torch.cat([first, first.new_tensor([position_ids.shape[1]])]).int()
    longest = int((offsets[1:] - offsets[:-1]).max()) if len(first) else 0
    return {
        "position_ids": position_ids,
        "seq_idx": (starts.cumsum(1) - 1).int(),
        "cu_seq_lens_q": offsets,
        "cu_seq_lens_k": offsets,
        "max_length_q": longest,
        "max_length_k": longest,
        "use_cache": False,
    }


def packed_offsets(kwargs: Mapping[str, Any]) -> Optional[torch.Tensor]:
    """The offsets ``[N + 1]`` of packed sequences in a model's keywords, by whichever name; None if there are none.

    Example:
        >>> packed_offsets({"seq_idx": torch.tensor([[0, 0, 1]]), "use_cache": False}).tolist()
        [0, 2, 3]
    """
    for name in ("cu_seqlens", "cu_seq_lens_q"):
        if kwargs.get(name) is not None:
            return kwargs[name]
    seq_idx = kwargs.get("seq_idx")
    if seq_idx is None:
        return None
    starts = torch.ones_like(seq_idx, dtype=torch.bool)
    starts[:, 1:] = seq_idx[:, 1:] != seq_idx[:, :-1]
    first = starts.flatten().nonzero().flatten()
    return torch.cat([first, first.new_tensor([seq_idx.numel()])])

"""The loss of language models: cross entropy of the next token, with or without all logits in memory."""

from typing import Optional, Tuple, Union

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from myfla.utils.dtypes import accumulation_dtype
from myfla.utils.errors import value_error
from myfla.utils.tensors import INTEGERS

__all__ = ["IGNORED", "L2_PENALTY", "causal_lm_loss", "l2_warp", "linear_cross_entropy", "next_tokens"]

IGNORED = -100
"""A label that is ignored."""
L2_PENALTY = 1e-4
PART = 1024  # number of tokens whose logits are in memory at a time


def l2_warp(loss: torch.Tensor, logits: torch.Tensor, l2_penalty_factor: float = L2_PENALTY) -> torch.Tensor:
    """The loss itself, with a gradient that also pulls the largest logit of each token towards zero.

    Backward adds ``factor / tokens * max(logits)`` to the gradient of that logit, as if the loss held
    ``factor / (2 tokens) * sum max(logits)^2``; its value does not. From RWKV-LM.

    Args:
        loss: scalar.
        logits: ``[B, T, vocab_size]``.
        l2_penalty_factor: strength.

    Returns:
        A scalar equal to ``loss``.

    Example:
        >>> logits = torch.tensor([[[3.0, 1.0]]], requires_grad=True)
        >>> l2_warp(logits.sum() * 0, logits, l2_penalty_factor=0.5).backward()
        >>> logits.grad.tolist()
        [[[1.5, 0.0]]]
    """
    return _with_gradient_of(loss, _penalty(logits, logits.shape[:-1].numel(), l2_penalty_factor))


def next_tokens(
    who: str, labels: Optional[torch.Tensor], shift_labels: Optional[torch.Tensor], like: torch.Tensor,
    ignored: int = IGNORED,
) -> Optional[torch.Tensor]:
    """For each position the token that follows it, ``ignored`` where none does; None without labels.

    Args:
        labels: ``[B, T]`` integers, the tokens themselves.
        shift_labels: ``[B, T]`` integers that are moved already; they win.
        like: ``[B, T, ...]``, the tensor to which they belong.

    Raises:
        ValueError: another shape, or no integers.
    """
    field, found = ("labels", labels) if shift_labels is None else ("shift_labels", shift_labels)
    if found is None:
        return None
    shape = list(like.shape[:2])
    if not isinstance(found, torch.Tensor) or found.dtype not in INTEGERS or list(found.shape) != shape:
        got = f"{found.dtype} {list(found.shape)}" if isinstance(found, torch.Tensor) else type(found).__name__
        raise value_error(who, field, f"must be integers {shape}", got)
    if found.is_meta and not like.is_meta:
        raise value_error(who, field, "must have values", "a tensor on meta")
    found = found.to(device=like.device, dtype=torch.int64)
    if shift_labels is not None or found.shape[1] == 0:
        return found
    return F.pad(found[:, 1:], (0, 1), value=ignored)


def causal_lm_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    num_items_in_batch: Union[int, torch.Tensor, None] = None,
    use_l2warp: bool = False,
) -> torch.Tensor:
    """Cross entropy of logits and the labels of the same positions.

    Args:
        logits: ``[B, T, vocab_size]``.
        labels: ``[B, T]`` int64, already shifted; -100 is left out.
        num_items_in_batch: what the sum is divided by; the number of labels counted if not given.
        use_l2warp: see `l2_warp`.

    Returns:
        Scalar, float32 (float64).
    """
    wide = logits.to(accumulation_dtype(logits)).reshape(labels.numel(), logits.shape[-1])
    reduction = "mean" if num_items_in_batch is None else "sum"
    loss = _cross_entropy(wide, labels.reshape(-1), reduction)
    if use_l2warp:
        loss = l2_warp(loss, logits)
    return loss if num_items_in_batch is None else loss / num_items_in_batch


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    num_items_in_batch: Union[int, torch.Tensor, None] = None,
    use_l2warp: bool = False,
) -> torch.Tensor:
    """`causal_lm_loss` of ``hidden @ weight.T``, of which only some rows are held at a time.

    Args:
        hidden: ``[B, T, D]``.
        weight: ``[vocab_size, D]``.
        labels, num_items_in_batch, use_l2warp: as for `causal_lm_loss`.
    """
    rows, labels = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1)
    loss = rows.new_zeros((), dtype=accumulation_dtype(hidden))
    penalty = loss
    for start in range(0, rows.shape[0], PART):
        part = (rows[start : start + PART], weight, labels[start : start + PART])
        # Checkpointed: the backward pass makes the logits of a part again, where autograd would keep all of them.
        done = checkpoint(_part_loss, *part, use_l2warp, rows.shape[0], use_reentrant=False)
        loss, penalty = loss + done[0], penalty + done[1]
    if num_items_in_batch is None:
        loss = loss / (labels != IGNORED).sum()
    if use_l2warp:
        loss = _with_gradient_of(loss, penalty)
    return loss if num_items_in_batch is None else loss / num_items_in_batch


def _part_loss(
    rows: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, use_l2warp: bool, tokens: int
) -> Tuple[torch.Tensor, torch.Tensor]:
    logits = F.linear(rows, weight)
    wide = logits.to(accumulation_dtype(logits))
    loss = _cross_entropy(wide, labels, "sum")
    return loss, _penalty(logits, tokens, L2_PENALTY) if use_l2warp else torch.zeros_like(loss)


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor, reduction: str) -> torch.Tensor:
    try:
        return F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction=reduction)
    except IndexError:
        outside = labels[(labels != IGNORED) & ((labels < 0) | (labels >= logits.shape[-1]))]
        rule = f"must be from 0 to {logits.shape[-1] - 1}, or {IGNORED} for none"
        raise value_error("loss", "labels", rule, int(outside[0]) if len(outside) else None) from None


def _penalty(logits: torch.Tensor, tokens: int, factor: float) -> torch.Tensor:
    largest = logits.max(dim=-1).values if logits.numel() else logits.sum()
    wide = largest.to(accumulation_dtype(largest))
    return (0.5 * factor / max(tokens, 1)) * (wide * wide).sum()


def _with_gradient_of(value: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return value + (other - other.detach()).to(value.dtype)

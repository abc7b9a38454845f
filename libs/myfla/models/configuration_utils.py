"""What the configs of the models check alike."""

import warnings
from typing import Any

from myfla.utils.errors import value_error

__all__ = [
    "check_sizes",
    "refuse_softmax_attention",
    "validate_attnres_config",
    "validate_loss_config",
]


def check_sizes(who: str, **sizes: Any) -> None:
    """Refuse what is not a positive integer; None is allowed."""
    for field, size in sizes.items():
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise value_error(who, field, "must be a positive integer", size)


def refuse_softmax_attention(who: str, attn: Any) -> None:
    """Refuse hybrid models: layers of softmax attention are not part of this library.

    Raises:
        ValueError: ``attn`` names at least one layer.
    """
    if attn is None or attn == [] or (isinstance(attn, dict) and attn.get("layers") == []):
        return
    hint = "hybrid models with layers of softmax attention need the official library"
    raise value_error(who, "attn", "must be None", attn, hint)


def validate_loss_config(who: str, fuse_cross_entropy: bool, fuse_linear_cross_entropy: bool) -> None:
    """Refuse both fused losses at once, as officially; warn of the second, whose sums are ordered differently."""
    if fuse_cross_entropy and fuse_linear_cross_entropy:
        hint = "set fuse_cross_entropy=False"
        raise value_error(who, "fuse_linear_cross_entropy", "excludes fuse_cross_entropy", True, hint)
    if fuse_linear_cross_entropy:
        warnings.warn(
            f"{who}: fuse_linear_cross_entropy saves memory; logits are not returned with a loss", stacklevel=3)


def validate_attnres_config(who: str, attnres_block_size: Any) -> None:
    """Refuse a block size other than None, 1 or an even number."""
    size = attnres_block_size
    if size is None:
        return
    if isinstance(size, bool) or not isinstance(size, int) or (size != 1 and (size < 2 or size % 2)):
        raise value_error(who, "attnres_block_size", "must be None, 1 or an even number from 2", size)

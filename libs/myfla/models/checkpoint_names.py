"""Which tensor of a folder becomes which parameter: older names, and models with or without an output projection."""

import re
from typing import Callable, Dict, Iterable, NamedTuple, Optional

import torch

__all__ = ["MIXES", "Source", "adapt_names", "split_mixes"]

MIXES = ("x_r", "x_w", "x_k", "x_v", "x_a", "x_g")
"""RWKV-7's mixing vectors, in the order in which older checkpoints stack them as ``x_x [6, ..., D]``."""

PREFIX = "model."
HEAD = "lm_head."
_STACKED = re.compile(r"^(?P<layer>(?:.*\.)?layers\.\d+\.attn\.)x_x$")


class Source(NamedTuple):
    """Where a parameter comes from: a tensor's name, and what is done to it."""

    name: str
    change: Optional[Callable[[torch.Tensor], torch.Tensor]] = None


def adapt_names(found: Iterable[str], headless: bool) -> Dict[str, Source]:
    """Where a model finds its parameters among the tensors of a folder.

    Args:
        found: names of the tensors.
        headless: whether the model has no output projection; its names then lack ``model.``.

    Returns:
        Name of each parameter and its source. Names that fit no rule are kept as they are.

    Example:
        >>> adapt_names(["model.norm.weight", "lm_head.weight"], headless=True)
        {'norm.weight': Source(name='model.norm.weight', change=None)}
    """
    found = list(found)
    whole = any(name.startswith(PREFIX) for name in found)
    sources: Dict[str, Source] = {}
    for name in found:
        if headless and whole and name.startswith(HEAD):
            continue
        target = name
        if headless and name.startswith(PREFIX):
            target = name[len(PREFIX) :]
        elif not headless and not whole and not name.startswith(HEAD):
            target = PREFIX + name
        stacked = _STACKED.match(target)
        if stacked is None:
            sources[target] = Source(name)
            continue
        for i, mix in enumerate(MIXES):
            sources[stacked.group("layer") + mix] = Source(name, _row(i))
    return sources


def split_mixes(state_dict: Dict[str, torch.Tensor], prefix: str) -> None:
    """Replace, in place, each stacked ``x_x`` below a prefix by the six vectors it holds."""
    for name in [name for name in state_dict if name.startswith(prefix) and _STACKED.match(name)]:
        stacked = state_dict.pop(name)
        for i, mix in enumerate(MIXES):
            state_dict[name[: -len("x_x")] + mix] = _row(i)(stacked)


def _row(i: int) -> Callable[[torch.Tensor], torch.Tensor]:
    def row(stacked: torch.Tensor) -> torch.Tensor:
        # Published both as [6, D] and as [6, 1, 1, D]. With another number of rows nothing fits: left as it is.
        return stacked[i].reshape(1, 1, -1) if stacked.dim() and stacked.shape[0] == len(MIXES) else stacked

    return row

"""Finds the part of an encoder, the sequence and the step at which numbers stop being finite."""

from contextlib import contextmanager
from typing import Any, Iterator, List, Optional, Tuple

import torch
import torch.nn as nn

from encoders.stack import Encoder

__all__ = ["NotFiniteError", "check_finite"]


class NotFiniteError(ArithmeticError):
    """A NaN or an infinity inside an encoder; the message says where it first appeared."""


@contextmanager
def check_finite(encoder: Encoder) -> Iterator[None]:
    """Check the output of every part of an encoder for NaN and infinity.

    Each check waits for the device; use it only to find an error.

    Args:
        encoder: an encoder of any strategy; it is not changed.

    Returns:
        A context manager; the checks are made inside its ``with`` block.

    Raises:
        TypeError: it is not an encoder.
        NotFiniteError: for the first part, in the order of computation, that returns a NaN or an infinity. The message
            names the first sequence with one, and its first step. Steps are counted over real tokens, and from the end
            in blocks that read backwards. A chunk form may show a NaN at earlier tokens of the same chunk.

    Example:
        >>> from encoders import build_encoder
        >>> encoder = build_encoder({"name": "gated_deltanet", "input_size": 3})
        >>> x = torch.zeros(2, 5, 3)
        >>> x[1, 2] = float("nan")
        >>> with check_finite(encoder):
        ...     out = encoder(x)
        Traceback (most recent call last):
            ...
        encoders.finite.NotFiniteError: check_finite: the input of the encoder must be finite; got nan in row 1, step 2
    """
    if not isinstance(encoder, Encoder):
        raise TypeError(f"check_finite: encoder must be an Encoder; got {type(encoder).__name__}")
    first = True

    def before(block: nn.Module, args: Tuple[Any, ...]) -> None:
        nonlocal first
        if first:
            _check("the input of the encoder", args[0], args[1].cu_seqlens)
        first = False

    def after(name: str) -> Any:
        def hook(module: nn.Module, args: Tuple[Any, ...], result: Any) -> None:
            nonlocal first
            cu_seqlens = args[1].cu_seqlens if len(args) > 1 else None
            _check(f"the output of {name}", result[0] if isinstance(result, tuple) else result, cu_seqlens)
            first = first or name == "norm"

        return hook

    hooks = [encoder.blocks[0].register_forward_pre_hook(before), encoder.norm.register_forward_hook(after("norm"))]
    for name in ("blocks", "backward_blocks"):
        hooks += [part.register_forward_hook(after(f"{name}.{i}")) for i, part in enumerate(getattr(encoder, name))]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _check(what: str, hidden: torch.Tensor, cu_seqlens: Optional[torch.Tensor]) -> None:
    finite = torch.isfinite(hidden)
    if finite.all():
        return
    row, step = (~finite).any(-1).nonzero()[0].tolist()
    got = hidden[row, step][~finite[row, step]][0].item()
    word = "row"
    if cu_seqlens is not None:
        word, starts = "sequence", cu_seqlens.tolist()
        row = _last_start(starts, step)
        step -= starts[row]
    raise NotFiniteError(f"check_finite: {what} must be finite; got {got} in {word} {row}, step {step}")


def _last_start(starts: List[int], position: int) -> int:
    return max(i for i, start in enumerate(starts[:-1]) if start <= position)

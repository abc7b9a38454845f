"""Whether a call is a plain decoding step, for which the checks of its arguments can be left out."""

from typing import Any, Iterable

import torch

from myfla.utils.autocast import autocast_enabled
from myfla.utils.tracing import tracing

__all__ = ["are_plain"]

_NARROW = (torch.float32, torch.bfloat16, torch.float16)


def are_plain(state: Any, tensors: Iterable[Any]) -> bool:
    """Whether these are plain tensors on a CPU, no subclasses, and neither autograd, autocast, a compiler nor a
    transform is active.

    With the right sizes, which the op knows, no check of such a call can fail; one row's decoding step would take about
    as long over them as over its arithmetic. After False, the usual checks are made.

    Args:
        state: passes only as contiguous float32.
        tensors: the others; they pass in float32, bfloat16 and float16.

    Example:
        >>> are_plain(torch.zeros(1), [torch.zeros(2)]), are_plain(torch.zeros(1), [3])
        (True, False)
    """
    graph = torch.is_grad_enabled()
    for x in (state, *tensors):
        if type(x) is not torch.Tensor or x.dtype not in _NARROW or x.device.type != "cpu":
            return False
        if graph and x.requires_grad:
            return False
    alone = not tracing() and not autocast_enabled("cpu")
    return alone and state.dtype is torch.float32 and state.is_contiguous()

"""Sizes that a compiler is to take as numbers."""

from typing import Any

import torch

from myfla.utils.tracing import compiling


def mark_static(*given: Any) -> None:
    """In a compiled function: have code made for these sizes, strides and integers, and for no others.

    All sizes but a tensor's first: chunks, tokens and rows vary from call to call, what a model is made of does not.
    With numbers for the rest a GPU's code reads whole vectors and divides by constants; without, the same functions
    took 1.3 to 1.8 times as long. Tuples are looked into; everything else is left alone.
    """
    if not compiling():
        return
    from torch._dynamo.comptime import comptime

    for x in given:
        if isinstance(x, torch.Tensor):
            for i in range(x.dim()):
                if i:
                    comptime.force_static(x.shape[i])
                comptime.force_static(x.stride(i))
        elif isinstance(x, int) and not isinstance(x, bool):
            comptime.force_static(x)
        elif isinstance(x, (tuple, list)):
            mark_static(*x)

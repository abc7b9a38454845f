"""Common code of operations of a compiled graph (`myfla.ops._delta.traced.graph`)."""

from typing import Any, Callable, Optional, Sequence

import torch

from myfla.utils.tracing import compiling, exporting

__all__ = ["custom_op", "one_by_one", "takes_graph_ops"]

custom_op: Any = getattr(torch.library, "custom_op", None) if hasattr(torch, "library") else None
"""``torch.library.custom_op``; None before PyTorch 2.4, which has none."""


def takes_graph_ops() -> bool:
    """Whether a compiler records that runs its graph in this process, where this library is imported.

    Example:
        >>> takes_graph_ops()
        False
    """
    return custom_op is not None and compiling() and not exporting()


def one_by_one(op: Callable, info: Any, in_dims: Sequence[Optional[int]], *given: Any) -> Any:
    """Compute as a loop under ``torch.func.vmap`` in a compiled graph."""
    calls = [
        op(*(x if dim is None else x.select(dim, i) for x, dim in zip(given, in_dims)))
        for i in range(info.batch_size)
    ]  # fmt: skip
    kind = list if isinstance(calls[0], list) else tuple
    results = kind(torch.stack(same) for same in zip(*calls))
    return results, kind(0 for _ in results)

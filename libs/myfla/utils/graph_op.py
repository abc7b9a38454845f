"""What operations of a compiled graph share (`myfla.ops._delta.traced.graph`)."""

from typing import Any, Callable, Optional, Sequence

import torch

from myfla.utils.tracing import compiling, exporting

__all__ = ["custom_op", "one_by_one", "takes_graph_ops"]

custom_op: Any = getattr(torch.library, "custom_op", None) if hasattr(torch, "library") else None
"""``torch.library.custom_op``; None in a PyTorch that has none (before 2.4)."""


def takes_graph_ops() -> bool:
    """Whether a compiler is recording that runs its graph in this process, with this library at hand.

    Example:
        >>> takes_graph_ops()
        False
    """
    return custom_op is not None and compiling() and not exporting()


def one_by_one(op: Callable, info: Any, in_dims: Sequence[Optional[int]], *given: Any) -> Any:
    """Under ``torch.func.vmap`` in a compiled graph: a loop."""
    calls = [
        op(*(x if dim is None else x.select(dim, i) for x, dim in zip(given, in_dims)))
        for i in range(info.batch_size)
    ]  # fmt: skip
    kind = list if isinstance(calls[0], list) else tuple
    results = kind(torch.stack(same) for same in zip(*calls))
    return results, kind(0 for _ in results)

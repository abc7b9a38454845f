"""The modules of an encoder, their parameters, and the shapes that pass through them."""

from typing import Any, Dict, List, NamedTuple, Optional

import torch
import torch.nn as nn

from encoders.inputs import input_width
from encoders.stack import Encoder
from myfla.models.state_tree import tensors_of

__all__ = ["LayerRow", "layer_rows", "sample_input", "state_rows"]


class LayerRow(NamedTuple):
    """One module.

    Attributes:
        path: its name in the encoder, e.g. ``blocks.0.mixer``.
        kind: its class.
        parameters: its number of parameters, including those of its parts.
        weights: shapes of its own parameters by name, and of those of parts that have no row.
        output: shapes of the tensors that it returned; empty if it was not called as a module.
    """

    path: str
    kind: str
    parameters: int
    weights: Dict[str, List[int]]
    output: List[List[int]]


def sample_input(encoder: Encoder, batch: int, length: int) -> torch.Tensor:
    """Random features ``[batch, length, input_size]``, or random token ids ``[batch, length]``."""
    config, weight = encoder.config, next(encoder.parameters())
    if config.vocab_size is not None:
        return torch.randint(config.vocab_size, (batch, length), device=weight.device)
    return torch.randn(batch, length, input_width(config), device=weight.device, dtype=weight.dtype)


def layer_rows(encoder: Encoder, batch: int, length: int, depth: int) -> List[LayerRow]:
    """One row for each module, in order, with the shapes of a forward pass.

    Args:
        encoder: any encoder.
        batch, length: size of the input.
        depth: how many levels of modules are shown; a module of the last level includes its parts.
    """
    shapes: Dict[str, List[List[int]]] = {}

    def watch(path: str, module: nn.Module) -> Any:
        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            shapes[path] = _shapes(output)

        return module.register_forward_hook(note)

    handles = [watch(path, module) for path, module in encoder.named_modules() if path]
    training = encoder.training
    try:
        with torch.no_grad():
            encoder.eval()(sample_input(encoder, batch, length))
    finally:
        encoder.train(training)
        for handle in handles:
            handle.remove()
    return [_row(path, module, depth, shapes.get(path, [])) for path, module in encoder.named_modules()
            if path and _level(path) <= depth and not isinstance(module, (nn.ModuleList, nn.Identity))]


def state_rows(encoder: Encoder) -> Optional[List[Dict[str, Any]]]:
    """The states of each layer for one sequence: ``layer``, ``state``, ``shape``, ``dtype``, ``bytes``.

    Returns:
        None for an encoder that cannot be fed in pieces.
    """
    if encoder.config.needs_end is not None:
        return None
    with torch.no_grad():
        cache = encoder(sample_input(encoder, 1, 1), use_cache=True).cache
    return [
        {"layer": i, "state": name, "shape": list(t.shape[1:]), "dtype": str(t.dtype).split(".")[-1],
         "bytes": t.numel() * t.element_size()}
        for i in range(len(cache)) for name, t in tensors_of(cache[i])
    ]


def _level(path: str) -> int:
    """Number of levels of a name; a list and the number of its item count as one."""
    return sum(not part.isdigit() for part in path.split("."))


def _row(path: str, module: nn.Module, depth: int, output: List[List[int]]) -> LayerRow:
    whole = _level(path) == depth
    weights = {name: list(p.shape) for name, p in module.named_parameters(recurse=whole)}
    return LayerRow(path, type(module).__name__, sum(p.numel() for p in module.parameters()), weights, output)


def _shapes(output: Any) -> List[List[int]]:
    parts = output if isinstance(output, (tuple, list)) else [output]
    return [list(part.shape) for part in parts if isinstance(part, torch.Tensor)]

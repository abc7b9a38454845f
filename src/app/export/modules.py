"""An encoder as modules of plain tensors: what a graph has as inputs and outputs."""

import re
from typing import List, Optional, Tuple

import torch
import torch.nn as nn

from app.streaming.model import Head
from cfg.validation import config_error
from encoders.stack import Encoder
from myfla.models.cache_layer import FIELDS
from myfla.models.state_tree import map_tensors, tensors_of
from myfla.models.utils import Cache

__all__ = ["EncoderStep", "WholeEncoder"]


class WholeEncoder(nn.Module):
    """``x [B, T, input_size]`` to ``hidden [B, T, D]``, ``embedding [B, D]`` and, with a head, ``logits`` (or
    ``values``), of each sequence or each step.

    Args:
        encoder: any.
        head: the classifier's; its standardisation of x becomes part of the graph.
    """

    def __init__(self, encoder: Encoder, head: Optional[Head] = None) -> None:
        super().__init__()
        self.encoder, self.has_head = encoder, head is not None
        self.per_step = head is not None and head.per_step
        if head is not None:
            for name in ("weight", "bias", "mean", "std"):
                self.register_buffer(name, getattr(head, name).clone())
        self.names = ["hidden", "embedding"]
        if head is not None:
            self.names.append("values" if head.classes is None else "logits")

    def forward(self, x: torch.Tensor) -> Tuple[torch.Tensor, ...]:
        out = self.encoder(self._standard(x))
        if not self.has_head:
            return out.hidden, out.embedding
        read = out.hidden if self.per_step else out.embedding
        return out.hidden, out.embedding, read.to(self.weight.dtype) @ self.weight.t() + self.bias

    def _standard(self, x: torch.Tensor) -> torch.Tensor:
        return ((x - self.mean) / self.std).to(x.dtype) if self.has_head else x


class EncoderStep(WholeEncoder):
    """``x [B, 1, input_size]`` and the states to ``hidden [B, 1, D]`` and the new states. Nothing is written in place.

    Keys and values of softmax attention ``[B, W, D]`` hold the last W tokens, the newest at the end; ``seen [B]``, the
    last of the states, then says how many tokens there were.

    Args:
        encoder: causal.
        head: only its standardisation of x is used.
        context: W of attention without a window of its own.

    Attributes:
        state_names: of the states, in order. A sequence begins with zeros.

    Raises:
        ConfigError: no ``context`` where it is needed.
    """

    def __init__(self, encoder: Encoder, head: Optional[Head] = None, context: Optional[int] = None) -> None:
        super().__init__(encoder, head)
        with torch.no_grad():
            probe = encoder(encoder.input.weight.new_zeros(1, 1, encoder.config.input_size), use_cache=True).cache
        self.trees = [probe[i] for i in range(len(probe))]
        self.windows = [_window(probe, i, context) for i in range(len(probe))]
        found = [(i, name) for i, tree in enumerate(self.trees) for name, _ in tensors_of(tree)]
        self.state_names = [re.sub(r"\W+", "_", f"layer{i}_{name}") for i, name in found]
        if any(self.windows):
            self.state_names.append("seen")
        self.names = ["hidden", *(f"new_{name}" for name in self.state_names)]

    def first_states(self, batch: int) -> List[torch.Tensor]:
        """The states of sequences that begin."""
        states = []
        for tree, window in zip(self.trees, self.windows):
            for name, t in tensors_of(tree):
                held = (window, *t.shape[2:]) if name.startswith("attn_state") else t.shape[1:]
                states.append(t.new_zeros(batch, *held))
        return [*states, torch.zeros(batch, dtype=torch.int64)] if any(self.windows) else states

    def forward(self, x: torch.Tensor, *states: torch.Tensor) -> Tuple[torch.Tensor, ...]:
        cache, rest = Cache(), iter(states)
        for i, (tree, window) in enumerate(zip(self.trees, self.windows)):
            given = map_tensors(lambda t: next(rest), tree)
            counts = {} if window is None else {"lengths": states[-1]}
            cache.update(layer_idx=i, offset=1, **{field: given[field] for field in FIELDS}, **counts)
        out = self.encoder(self._standard(x), cache=cache)
        new: List[torch.Tensor] = []
        for i, window in enumerate(self.windows):
            for name, t in tensors_of(out.cache[i]):
                new.append(t[:, t.shape[1] - window :] if name.startswith("attn_state") else t)
        return (out.hidden, *new, states[-1] + 1) if any(self.windows) else (out.hidden, *new)


def _window(probe: Cache, layer: int, context: Optional[int]) -> Optional[int]:
    """How many tokens the attention of a layer keeps; None for a layer without attention."""
    if probe[layer]["attn_state"] is None:
        return None
    window = probe.layers[layer].window_size
    if window is None and context is None:
        raise config_error("job.context", f"must be given for an encoder whose layer {layer} is attention without a "
                           "window", None, "job.context=N: a stream of N tokens equals PyTorch's")
    return context if window is None else window

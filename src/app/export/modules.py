"""An encoder as modules whose inputs and outputs are plain tensors, for graphs."""

import re
from typing import List, Optional, Tuple

import torch
import torch.nn as nn

from cfg.validation import config_error
from encoders.inputs import input_weight, input_width
from encoders.pipeline import InputPipeline
from encoders.stack import Encoder
from encoders.training.tasks.answers import answer
from encoders.training.tasks.task import Task
from myfla.models.cache_layer import FIELDS
from myfla.models.state_tree import map_tensors, tensors_of
from myfla.models.utils import Cache

__all__ = ["EncoderStep", "WholeEncoder"]


class WholeEncoder(nn.Module):
    """``x [B, T, channels]``, raw, or token ids ``[B, T]``, to ``hidden [B, T, D]``, ``embedding [B, D]`` and, with a
    task, ``logits`` or ``values`` in the data's units, of each sequence or each step.

    Args:
        encoder: any encoder; it reads prepared data.
        pipeline: prepares the data; it becomes part of the graph.
        task: the task with its head; needs a pipeline.
    """

    def __init__(self, encoder: Encoder, pipeline: Optional[InputPipeline] = None, task: Optional[Task] = None) -> None:
        super().__init__()
        self.encoder, self.pipeline, self.task = encoder, pipeline, task
        self.names = ["hidden", "embedding"]
        if task is not None:
            self.names.append("logits" if task.spec.kind == "classes" else "values")

    def forward(self, x: torch.Tensor) -> Tuple[torch.Tensor, ...]:
        out = self.encoder(self._prepared(x))
        if self.task is None:
            return out.hidden, out.embedding
        outputs = self.task(out)
        if self.task.spec.kind == "values":
            if self.pipeline is None:
                raise ValueError("a task goes with a pipeline")
            values = answer(self.task, self.pipeline, outputs).values
            outputs = outputs if values is None else values.to(out.hidden.dtype)
        return out.hidden, out.embedding, outputs

    @property
    def channels(self) -> Optional[int]:
        """Channels of x; None for token ids ``[B, T]``."""
        schema = None if self.pipeline is None else self.pipeline.schema
        return self.encoder.config.input_size if schema is None else len(schema.features)

    def sample(self, batch: int, length: int) -> torch.Tensor:
        """Random input of the scale of the training data, with missing values if they are allowed."""
        size = self.encoder.config.vocab_size
        if size is not None:
            return torch.randint(size, (batch, length))
        x = torch.randn(batch, length, self.channels or 0, dtype=torch.float64)
        pipeline = self.pipeline
        if pipeline is not None and not pipeline.own_scale:
            x = pipeline.untransform(x)
        if pipeline is not None and pipeline.missing != "error" and length > 1:
            x[torch.rand_like(x) < 0.1] = float("nan")
        return x.to(input_weight(self.encoder.input).dtype)

    def _prepared(self, x: torch.Tensor) -> torch.Tensor:
        if self.pipeline is None or self.channels is None:
            return x
        return self.pipeline.transform(x).to(input_weight(self.encoder.input).dtype)


class EncoderStep(WholeEncoder):
    """``x [B, 1, input_size]`` and the states to ``hidden [B, 1, D]`` and the new states. Nothing is written in place.

    Keys and values of softmax attention ``[B, W, D]`` are those of the last W tokens, the newest at the end; the last
    state is then ``seen [B]``, the number of tokens so far.

    Args:
        encoder: a causal encoder.
        pipeline: prepares x.
        context: W for attention without a window.

    Attributes:
        state_names: names of the states, in order. A sequence begins with zeros.

    Raises:
        ConfigError: ``context`` is needed and missing.
    """

    def __init__(self, encoder: Encoder, pipeline: Optional[InputPipeline] = None,
                 context: Optional[int] = None) -> None:
        super().__init__(encoder, pipeline)
        with torch.no_grad():
            first = input_weight(encoder.input).new_zeros(1, 1, input_width(encoder.config))
            probe = encoder(first, use_cache=True).cache
        self.trees = [probe[i] for i in range(len(probe))]
        self.windows = [_window(probe, i, context) for i in range(len(probe))]
        found = [(i, name) for i, tree in enumerate(self.trees) for name, _ in tensors_of(tree)]
        self.state_names = [re.sub(r"\W+", "_", f"layer{i}_{name}") for i, name in found]
        if any(self.windows):
            self.state_names.append("seen")
        self.names = ["hidden", *(f"new_{name}" for name in self.state_names)]

    def first_states(self, batch: int) -> List[torch.Tensor]:
        """The states at the beginning of sequences."""
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
            cache.update(layer_idx=i, offset=1, lengths=None if window is None else states[-1],
                         **{field: given[field] for field in FIELDS})
        out = self.encoder(self._prepared(x), cache=cache)
        new: List[torch.Tensor] = []
        for i, window in enumerate(self.windows):
            for name, t in tensors_of(out.cache[i]):
                kept = window is not None and name.startswith("attn_state")
                new.append(t[:, t.shape[1] - (window or 0) :] if kept else t)
        return (out.hidden, *new, states[-1] + 1) if any(self.windows) else (out.hidden, *new)


def _window(probe: Cache, layer: int, context: Optional[int]) -> Optional[int]:
    """How many tokens the attention of a layer keeps; None for a layer without attention."""
    state = probe[layer]
    if state is None or state["attn_state"] is None:
        return None
    window = probe.layers[layer].window_size
    if window is None and context is None:
        raise config_error("job.context", f"must be given for an encoder whose layer {layer} is attention without a "
                           "window", None, "job.context=N: a stream of N tokens equals PyTorch's")
    return context if window is None else window

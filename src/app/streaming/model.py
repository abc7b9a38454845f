"""A trained run as a model that continues many sequences by further rows."""

from pathlib import Path
from typing import Any, List, Optional, Sequence, Tuple

import numpy as np
import torch

from app.errors import RunError
from app.streaming.limits import Range, fill_from, prepared
from encoders.inputs import input_weight, input_width
from encoders.pipeline import InputPipeline
from encoders.running_pooling import RunningPooling
from encoders.stack import Encoder, EncoderOutput
from encoders.training.tasks.answers import Answers, answer, answer_names
from encoders.training.tasks.task import Task
from encoders.training.trained import TASK, Trained, load_trained
from myfla.models.cache_layer import FIELDS
from myfla.models.state_tree import map_tensors, tensors_of
from myfla.models.utils import Cache

__all__ = ["StreamModel", "load_model", "why_no_stream"]


class StreamModel:
    """A causal encoder, its input pipeline, its running pooling and its task, over states that are lists of tensors.

    The state of N sessions is a list of tensors ``[N, ...]``: the layers' caches, then the running pooling's, then, for
    missing values that take the one before, the last value of each channel.

    Args:
        encoder: causal, reading real-valued features.
        pipeline: from the rows to the input of the encoder; None for a folder with only an encoder.
        task: the task with its head; None for a folder with only an encoder.
        key: a name of the weights, so that states of other weights are refused.
    """

    def __init__(self, encoder: Encoder, pipeline: Optional[InputPipeline], task: Optional[Task], key: str) -> None:
        self.encoder, self.pipeline, self.task, self.key = encoder.eval(), pipeline, task, key
        self.input_size = input_width(encoder.config)
        self.weight = input_weight(encoder.input)
        self.pooling = RunningPooling(encoder.pooling, encoder.config.hidden_size)
        with torch.inference_mode():
            probe = encoder(self.weight.new_zeros(1, 1, self.input_size), use_cache=True).cache
        self._trees = [probe[i] for i in range(len(probe))]
        #: One row of zeros (and of the pooling's neutral values): the state of a session that has sent nothing.
        self.fresh = [torch.zeros_like(t) for tree in self._trees for _, t in tensors_of(tree)]
        self._cached = len(self.fresh)
        self.fresh += self.pooling.start(1, self.weight.device)
        self._range = Range(encoder, pipeline)
        self._filler = pipeline is not None and pipeline.missing == "forward"
        if self._filler:  # the last value of each channel
            self.fresh.append(self.weight.new_full((1, self.input_size), float("nan"), dtype=torch.float64))

    @property
    def missing(self) -> bool:
        """Whether values may be missing, as in the run's training."""
        return self.pipeline is not None and self.pipeline.missing != "error"

    def takes(self, features: np.ndarray) -> np.ndarray:
        """Which rows are not too large for the model, ``[n]`` bool; see `app.streaming.limits.Range`."""
        return self._range(features)

    def advance(
        self, x: torch.Tensor, counts: torch.Tensor, seen: torch.Tensor, states: Sequence[torch.Tensor]
    ) -> Tuple[torch.Tensor, torch.Tensor, List[torch.Tensor]]:
        """Continue some sessions by new rows.

        Args:
            x: ``[total, input_size]`` features as they were sent, in the run's order, session after session.
            counts: ``[N]`` int64, number of new rows of each, at least one.
            seen: ``[N]`` int64, number of earlier rows of each.
            states: ``[N, ...]`` each, see `fresh`. Those of the recurrence may be overwritten and returned.

        Returns:
            ``(hidden, embedding, states)``: ``[total, hidden_size]`` of each row and after each row, and the states
            after all.
        """
        kept = []
        if self._filler:
            x, last = fill_from(x, counts, states[-1])
            states, kept = states[:-1], [last]
        x = prepared(self.pipeline, x)
        x = x.to(self.weight.dtype)
        cache = self._cache(states[: self._cached], seen)
        most = int(counts.max())
        if most == int(counts.min()):
            out = self.encoder(x.view(len(counts), most, -1), cache=cache)
            hidden = out.hidden.flatten(0, 1)
        else:
            offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
            out = self.encoder(x.unsqueeze(0), cu_seqlens=offsets, cache=cache)
            hidden = out.hidden[0]
        embedding, pooled = self.pooling(hidden, counts, tuple(states[self._cached :]))
        new = [t for i in range(len(out.cache)) for _, t in tensors_of(out.cache[i])]
        return hidden, embedding, [*new, *pooled, *kept]

    def predict(self, hidden: torch.Tensor, embedding: torch.Tensor) -> Answers:
        """Predictions for every row, by its hidden state or by the embedding so far, ``[total, hidden_size]``."""
        task, pipeline = self._head
        return answer(task, pipeline, task(EncoderOutput(hidden, embedding, None, embedding)))

    @property
    def names(self) -> List[str]:
        """Of the task's classes or values."""
        return answer_names(*self._head)

    @property
    def _head(self) -> Tuple[Task, InputPipeline]:
        if self.task is None or self.pipeline is None:
            raise ValueError("a model without a task has embeddings, and no predictions")
        return self.task, self.pipeline

    def _cache(self, states: Sequence[torch.Tensor], seen: torch.Tensor) -> Cache:
        cache, rest, offset = Cache(), iter(states), int(seen.max())
        cache.fingerprint, cache.inplace = self.encoder.fingerprint, True
        for i, tree in enumerate(self._trees):
            given = map_tensors(lambda t: next(rest), tree)
            cache.update(layer_idx=i, offset=offset, lengths=seen, **{field: given[field] for field in FIELDS})
        return cache


def load_model(folder: Path, emit: str, device: Any = "cpu") -> StreamModel:
    """The model that a run left.

    Args:
        folder: of a run of ``job=train``, or of a saved encoder (which has no task).
        emit: ``prediction`` needs the task.
        device: the device on which it runs.

    Raises:
        RunError: the folder is empty, its files are damaged, or the encoder cannot stream (the states of softmax
            attention grow, so `StreamModel.advance` cannot store them).
    """
    trained = load_trained(folder, device)
    problem = why_no_stream(trained)
    if problem is not None:
        raise RunError(problem)
    model = StreamModel(trained.encoder, trained.pipeline, trained.task, trained.key)
    if any(tree["attn_state"] is not None for tree in model._trees):
        raise RunError(f"run={str(folder)!r} must hold an encoder whose states have a fixed size; got one that keeps "
                       "attention states")
    if trained.task is None and emit == "prediction":
        raise RunError(f"run={str(folder)!r} must hold {TASK} for job.emit=prediction; got no such file; "
                       "use job.emit=embedding")
    return model


def why_no_stream(trained: Trained) -> Optional[str]:
    """Why a run cannot be fed step by step, or None."""
    config, who = trained.encoder.config, f"run={str(trained.folder)!r}"
    if config.needs_end is not None:
        return (f"{who} must hold an encoder that can be fed in pieces; got {config.needs_end}: it has to know the end "
                "of a sequence, which a stream does not have; train a run without, e.g. with encoder.direction=causal")
    if trained.pipeline is not None and trained.pipeline.own_scale:
        return (f"{who} must hold a run that can be fed in pieces; got data.own_scale=true: the scale of a sequence is "
                "known at its end; train a run with data.own_scale=false")
    if config.vocab_size is not None:
        return f"{who} must hold an encoder of real-valued features; got encoder.vocab_size={config.vocab_size}"
    return None

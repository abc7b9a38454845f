"""A trained run as a model that takes one more piece of many sequences at a time."""

import hashlib
from pathlib import Path
from typing import Any, List, NamedTuple, Optional, Sequence, Tuple

import torch

from app.errors import RunError
from app.run_config import CONFIG
from app.trained import TASK, Trained, load_trained
from encoders.running_pooling import RunningPooling
from encoders.stack import Encoder
from myfla.models.cache_layer import FIELDS
from myfla.models.state_tree import map_tensors, tensors_of
from myfla.models.utils import Cache
from myfla.utils.regular import read_regular

__all__ = ["Head", "StreamModel", "load_model"]


class Head(NamedTuple):
    """What ``job=train`` puts around the encoder.

    Attributes:
        weight, bias: ``[outputs, hidden_size]``, ``[outputs]``.
        mean, std: ``[input_size]``: the input is ``(features - mean) / std``.
        classes: their names; None where the outputs are values.
        per_step: the head reads hidden states, not embeddings.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    mean: torch.Tensor
    std: torch.Tensor
    classes: Optional[List[str]]
    per_step: bool = False


class StreamModel:
    """A causal encoder, its running pooling and its head, over states that are plain lists of tensors.

    The state of N sessions is a list of tensors ``[N, ...]``: the layers' caches, then the running pooling's.

    Args:
        encoder: causal, reading real-valued features.
        head: the classifier's; None in a folder that holds nothing but an encoder.
        key: a name for the weights, so that states of other weights are refused.
    """

    def __init__(self, encoder: Encoder, head: Optional[Head], key: str) -> None:
        self.encoder, self.head, self.key = encoder.eval(), head, key
        self.input_size = encoder.config.input_size
        self.weight = encoder.input.weight
        self.pooling = RunningPooling(encoder.pooling, encoder.config.hidden_size)
        with torch.inference_mode():
            probe = encoder(self.weight.new_zeros(1, 1, self.input_size), use_cache=True).cache
        self._trees = [probe[i] for i in range(len(probe))]
        #: One row of zeros (and of the pooling's identity): the state of a session that has sent nothing.
        self.fresh = [torch.zeros_like(t) for tree in self._trees for _, t in tensors_of(tree)]
        self._cached = len(self.fresh)
        self.fresh += self.pooling.start(1, self.weight.device)

    def advance(
        self, x: torch.Tensor, counts: torch.Tensor, seen: torch.Tensor, states: Sequence[torch.Tensor]
    ) -> Tuple[torch.Tensor, List[torch.Tensor]]:
        """Take in new rows of some sessions.

        Args:
            x: ``[total, input_size]`` features as they were sent, session after session.
            counts: ``[N]`` int64, rows of each, at least one.
            seen: ``[N]`` int64, rows of each before.
            states: ``[N, ...]`` each, see `fresh`. Those of the recurrence may be written over, and returned.

        Returns:
            ``(embedding, states)``: ``[total, hidden_size]`` after each row, and the states after all.
        """
        if self.head is not None:
            x = (x - self.head.mean) / self.head.std
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
        return embedding, [*new, *pooled]

    def predict(self, embedding: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        """``(class [total] int64, its probability [total])`` of embeddings."""
        logits = embedding.to(self.head.weight.dtype) @ self.head.weight.t() + self.head.bias
        probability, index = logits.softmax(-1).max(-1)
        return index, probability

    def _cache(self, states: Sequence[torch.Tensor], seen: torch.Tensor) -> Cache:
        cache, rest, offset = Cache(), iter(states), int(seen.max())
        cache.fingerprint, cache.inplace = self.encoder.fingerprint, True
        for i, tree in enumerate(self._trees):
            given = map_tensors(lambda t: next(rest), tree)
            cache.update(layer_idx=i, offset=offset, lengths=seen, **{field: given[field] for field in FIELDS})
        return cache


def load_model(folder: Path, emit: str, device: Any = "cpu", attention: bool = False) -> StreamModel:
    """The model that a run left.

    Args:
        folder: of a run of ``job=train``, or of a saved encoder (which has no head).
        emit: ``prediction`` needs the head.
        device: where it shall run.
        attention: whether an encoder with layers of softmax attention will do; `StreamModel.advance` cannot keep their
            states, which grow.

    Raises:
        RunError: nothing there, damaged files, or an encoder that cannot stream.
    """
    trained = load_trained(folder, device)
    encoder, head = trained.encoder, _head(trained, emit)
    config = encoder.config
    if config.needs_end is not None:
        raise RunError(f"run={str(folder)!r} must hold an encoder that can be fed in pieces; got {config.needs_end}: "
                       "it has to know the end of a sequence, which a stream does not have; train a run without, e.g. "
                       "with encoder.direction=causal")
    if (folder / CONFIG).exists() and trained.config.data.own_scale:
        raise RunError(f"run={str(folder)!r} must hold a run that can be fed in pieces; got data.own_scale=true: the "
                       "scale of a sequence is known at its end; train a run with data.own_scale=false")
    if config.vocab_size is not None:
        raise RunError(f"run={str(folder)!r} must hold an encoder of real-valued features; got "
                       f"encoder.vocab_size={config.vocab_size}")
    model = StreamModel(encoder, head, _key(folder))
    if not attention and any(tree["attn_state"] is not None for tree in model._trees):
        raise RunError(f"run={str(folder)!r} must hold an encoder whose states have a fixed size; got one that keeps "
                       "attention states")
    if head is None and emit == "prediction":
        raise RunError(f"run={str(folder)!r} must hold {TASK} for job.emit=prediction; got no such file; "
                       "use job.emit=embedding")
    return model


def _head(trained: Trained, emit: str) -> Optional[Head]:
    task = trained.task
    if task is None:
        return None
    spec = task.spec
    if emit == "prediction" and (spec.per_step or spec.kind != "classes"):
        raise RunError(f"run={str(trained.folder)!r} must hold a classifier of whole sequences for "
                       f"job.emit=prediction; got job.objective={spec.objective!r}; use job.emit=embedding")
    weight, bias = task.head.weight.detach(), task.head.bias.detach()
    if spec.kind == "values":  # in the data's units
        weight, bias = weight * task.target_std[:, None], bias * task.target_std + task.target_mean
    scale = trained.standardizer
    mean, std = (None, None) if scale is None else (scale.mean, scale.std)
    return Head(weight, bias, mean, std, trained.classes, spec.per_step)


def _key(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in ("encoder.safetensors", TASK):
        path = folder / name
        digest.update(read_regular(path) if path.exists() else b"none")
    return digest.hexdigest()[:32]

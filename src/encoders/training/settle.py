"""Chooses settings from the training data, if a setting leaves the choice (null, or ``encoder.stem=auto``).

Settings that were given are never changed, and only the training set is used. The few rules were found by
cross-validation inside the training sets of eight public data sets (`.doc/90_operations/experiments.md`):

- Whole, long sequences of few channels get a stem of convolutions in front of a bidirectional stack; in training, a
  stretch of each is hidden, and if they are few and of one channel, each skips half of the recurrent layers. Short
  ones get no stem, and shifts where their own levels differ.
- Where the scale of whole sequences spans orders of magnitude, each is brought to its own.
- A small set is trained on as a whole, for a number of optimizer steps: what could be held out of it would be too
  little to choose an epoch by. A large one, one with a target a step, or a training whose epochs were given, holds a
  fifth out and chooses the epoch by it.
"""

import dataclasses
import logging
from typing import Any, Dict, NamedTuple, Tuple

import torch

from cfg.app import AppConfig
from encoders.training.data.sequences import SequenceData, SequenceSet
from encoders.training.tasks.spec import TaskSpec

__all__ = ["Facts", "facts_of", "settle"]

log = logging.getLogger(__name__)

SMALL = 1000  # training sequences below which none is held out
FEW = 300  # training sequences of one channel below which they are learned by heart, unless they skip layers
LONG, FEW_CHANNELS = 64, 64  # steps of the median sequence, and channels, for the stem
STACK = 110  # steps of a sequence that the stem leaves to the stack, if it can
TOKENS = 1_400_000  # that the stack is to see in a training, so that it takes minutes
SPAN = 100.0  # ratio of scales of sequences, quiet ones and loud ones left out, that calls for scales of their own
Choices = Dict[str, Any]


class Facts(NamedTuple):
    """What the choices depend on.

    Attributes:
        sequences: of the training set.
        typical, longest: steps of the median sequence, and of that which nine in ten are not longer than.
        channels: 0 for token ids.
        whole: one target for each sequence.
        span: how many times larger the deviation of sequences is at their 95th percentile than at the 5th.
        levels: standard deviation of the sequences' own means, in units of that of all values; over all channels.
    """

    sequences: int
    typical: int
    longest: int
    channels: int
    whole: bool
    span: float
    levels: float


def facts_of(train: SequenceSet, channels: int, whole: bool) -> Facts:
    """Measure a training set; of its values only where they are features.

    Example:
        >>> data = SequenceSet([torch.randn(90, 2), torch.randn(110, 2)], torch.tensor([0, 1]))
        >>> facts_of(data, 2, True)[:5]
        (2, 100, 108, 2, True)
    """
    lengths = torch.tensor(train.lengths, dtype=torch.float64)
    typical, longest = int(lengths.quantile(0.5)), round(float(lengths.quantile(0.9)))
    span, levels = 1.0, 0.0
    if channels and whole and len(train) < SMALL:
        rows = [(x[~x.isnan().any(1)] if x.is_floating_point() else x).double() for x in train.sequences]
        rows = [x for x in rows if len(x) > 1]
        if rows:
            means, stds = (torch.stack([getattr(x, how)(0) for x in rows]) for how in ("mean", "std"))
            low, high = stds.mean(1).quantile(0.05), stds.mean(1).quantile(0.95)
            span = float(high / low) if low > 0 else 1.0
            every = torch.cat(rows).std(0)
            levels = float((means.std(0, unbiased=False) / every.clamp(min=1e-12))[every > 0].mean().nan_to_num())
    return Facts(len(train), typical, longest, channels, whole, span, levels)


def settle(config: AppConfig, data: SequenceData, task: TaskSpec) -> Tuple[AppConfig, Choices]:
    """The config with every choice made; they are said in the log.

    Args:
        config: of a training; one that has been settled comes back as it is.
        data: whose training set decides.
        task: what is to be learned.

    Returns:
        ``(config, chosen)``; the choices by their names on the command line, ``{"encoder.stem": "inception", ...}``.
    """
    facts = facts_of(data.train, data.input_size or 0, not task.per_step and not task.shifts)
    made: Choices = {}
    for group, choose in (("data", _data), ("encoder", _encoder), ("trainer", _trainer), ("job", _job)):
        part = getattr(config, group)
        chosen = {name: value for name, value in choose(config, facts).items() if getattr(part, name) in (None, "auto")}
        if chosen:
            config = dataclasses.replace(config, **{group: dataclasses.replace(part, **chosen)})
            made.update({f"{group}.{name}": value for name, value in chosen.items()})
    if made:
        said = " ".join(f"{name}={str(value).lower()}" for name, value in made.items())
        log.info("chosen from the training data (%s): %s", _describe(facts), said)
    return config, made


def _small(config: AppConfig, facts: Facts) -> bool:
    """Trained on as a whole, for a number of steps."""
    return bool(facts.channels) and facts.whole and facts.sequences < SMALL and config.trainer.max_epochs is None


def _data(config: AppConfig, facts: Facts) -> Choices:
    streams = config.encoder.direction == "causal"  # the scale of a sequence is known at its end
    small = _small(config, facts)
    batches = max(1, round(facts.sequences / 16))
    return {"batch_size": -(-facts.sequences // batches) if small else 16, "validation_fraction": 0.0 if small else 0.2,
            "own_scale": facts.span > SPAN and not streams}


def _encoder(config: AppConfig, facts: Facts) -> Choices:
    chosen = _stem(config, facts) if config.encoder.stem == "auto" else {}  # None elsewhere has its own meaning
    convolves = chosen.get("stem", config.encoder.stem) == "inception"
    few = _small(config, facts) and facts.sequences < FEW and facts.channels == 1
    return {**chosen, "drop_path": 0.5 if convolves and few else 0.0}


def _stem(config: AppConfig, facts: Facts) -> Choices:
    fits = facts.channels and facts.whole and config.encoder.direction == "bidirectional"
    if not fits or facts.typical < LONG or facts.channels > FEW_CHANNELS or config.encoder.hidden_size < 4:
        return {"stem": "none"}
    strides = [stride for stride in (2, 4, 8) if facts.longest <= stride * STACK]
    return {"stem": "inception", "stem_stride": min(strides, default=8)}


def _trainer(config: AppConfig, facts: Facts) -> Choices:
    if config.trainer.max_steps is not None:
        return {}
    if not _small(config, facts):
        return {"max_epochs": 20}
    if config.encoder.stem != "inception":
        return {"max_steps": 600}
    each = (config.data.batch_size or 16) * max(1, facts.longest // config.encoder.shortening)
    return {"max_steps": max(200, min(600 if facts.sequences < 150 else 1000, TOKENS // each))}


def _job(config: AppConfig, facts: Facts) -> Choices:
    if not _small(config, facts):
        return {"learning_rate": 2e-3, "offset": 0.3, "mask": 0.0}
    if config.encoder.stem == "inception":
        return {"learning_rate": 3e-3, "offset": 0.0, "mask": 0.3}
    return {"learning_rate": 2e-3, "offset": 0.3 if facts.levels > 0.1 else 0.0, "mask": 0.0}


def _describe(facts: Facts) -> str:
    kind = f"{facts.channels} channel{'s' * (facts.channels != 1)}" if facts.channels else "token ids"
    return f"{facts.sequences} sequences of {kind}, typically {facts.typical} steps"

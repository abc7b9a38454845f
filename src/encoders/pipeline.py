"""Prepares raw data for a trained encoder: columns by name, missing values, scales. Saved with the encoder."""

import math
from dataclasses import dataclass
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import torch
from torch import Tensor

from encoders.errors import InputError
from encoders.scaling import fill_forward, own_scale, standardise, usable_std
from encoders.schema import InputSchema

__all__ = ["MISSING", "InputPipeline"]

MISSING = ("error", "mean", "forward")
_BLOCK = 1 << 20  # number of steps that are measured together


@dataclass(frozen=True)
class InputPipeline:
    """All steps between raw data and an encoder; measured on training sequences only.

    Attributes:
        schema: the columns that are read; None for token ids.
        missing: how a missing value (NaN) is treated: ``error``, ``mean`` (of its channel), or ``forward`` (the value
            before it, or the first one after it).
        own_scale: whether each sequence is first scaled to mean 0 and standard deviation 1; see
            `encoders.scaling.own_scale`.
        mean, std: of each channel that the encoder reads (`width`), in float64.
        classes: names in the order of the logits; None if targets are not classes.
        targets: names of the values to predict; None if targets are not numbers.
        vocab_size: number of token ids; None for features.

    Example:
        >>> pipeline = InputPipeline.fit([torch.tensor([[1.0], [3.0]])])
        >>> pipeline.transform(torch.tensor([[5.0]])).tolist()
        [[3.0]]
        >>> InputPipeline.from_facts(pipeline.facts()) == pipeline
        True
    """

    schema: Optional[InputSchema] = None
    missing: str = "error"
    own_scale: bool = False
    mean: Tuple[float, ...] = ()
    std: Tuple[float, ...] = ()
    classes: Optional[Tuple[str, ...]] = None
    targets: Optional[Tuple[str, ...]] = None
    vocab_size: Optional[int] = None

    def __post_init__(self) -> None:
        if (self.schema is None) == (self.vocab_size is None):
            raise InputError("InputPipeline: schema must be given, or vocab_size, and not both")
        if self.missing not in MISSING:
            raise InputError(f"InputPipeline: missing must be one of {', '.join(MISSING)}; got {self.missing!r}")
        sizes = [len(self.mean), len(self.std)]
        if sizes != [self.width or 0] * 2:
            raise InputError(f"InputPipeline: mean and std must have {self.width or 0} values each; got {sizes}")
        if not all(map(math.isfinite, (*self.mean, *self.std))) or not all(value > 0 for value in self.std):
            raise InputError("InputPipeline: mean and std must be finite, and std above 0")

    @classmethod
    def fit(cls, sequences: Sequence[Tensor], schema: Optional[InputSchema] = None, missing: str = "error",
            standardize: bool = True, own_scale: bool = False, classes: Optional[Sequence[str]] = None,
            targets: Optional[Sequence[str]] = None) -> "InputPipeline":
        """Measure mean and standard deviation over all steps, in float64, without missing values.

        Args:
            sequences: the training sequences, ``[T_i, D]`` each, NaN for a missing value.
            schema: the schema of their columns; None: channels without names.
            missing, own_scale, classes, targets: as above.
            standardize: False keeps the scale: mean 0, std 1.

        Returns:
            The pipeline.

        Raises:
            InputError: the sequences have another width than the schema.
        """
        width = sequences[0].shape[1]
        schema = InputSchema.unnamed(width) if schema is None else schema
        if len(schema.features) != width:
            raise InputError(f"InputPipeline: schema must have {width} features, as the sequences; got "
                             f"{len(schema.features)}")
        wide = 2 * width if own_scale else width
        mean, std = [0.0] * wide, [1.0] * wide
        if standardize:
            mean, std = _measure(sequences, own_scale, wide)
        return cls(schema, missing, own_scale, tuple(mean), tuple(std), _names(classes), _names(targets))

    @classmethod
    def tokens(cls, vocab_size: int, classes: Optional[Sequence[str]] = None,
               targets: Optional[Sequence[str]] = None) -> "InputPipeline":
        """The pipeline for token ids, which are not changed.

        Args:
            vocab_size: number of token ids.
            classes, targets: as for the class.

        Returns:
            The pipeline.
        """
        return cls(vocab_size=vocab_size, classes=_names(classes), targets=_names(targets))

    @property
    def width(self) -> Optional[int]:
        """Channels that the encoder reads, ``input_size``; None for token ids."""
        if self.schema is None:
            return None
        return len(self.schema.features) * (2 if self.own_scale else 1)

    @property
    def needs_whole(self) -> bool:
        """Whether a step depends on others of its sequence, so that a whole sequence is needed."""
        return self.own_scale or self.missing == "forward"

    def transform(self, x: Tensor) -> Tensor:
        """Prepare raw data for the encoder.

        Args:
            x: ``[..., T, D]`` raw features, in order, or token ids. With `needs_whole`, every ``[T, D]`` must be a
                complete sequence without padding; otherwise it may be any steps.

        Returns:
            ``[..., T, width]`` float32, computed in float64, so that float64 data keep differences that float32 would
            lose; token ids as int64.
        """
        if self.schema is None:
            return x.long()
        device = x.device
        place = torch.device("cpu") if device.type == "mps" else device  # which has no float64
        x = x.to(place, torch.float64)
        if self.own_scale:
            x = own_scale(x)
        if self.missing == "forward":
            x = fill_forward(x)
        mean, std = (torch.tensor(values, dtype=torch.float64, device=place) for values in (self.mean, self.std))
        return standardise(x, mean, std, self.missing).float().to(device)

    def untransform(self, x: Tensor) -> Tensor:
        """From prepared features ``x [..., width]`` back to the units of the data, float64; not with ``own_scale``."""
        mean, std = (torch.tensor(values, dtype=torch.float64, device=x.device) for values in (self.mean, self.std))
        return x.double() * std + mean

    def describe(self) -> str:
        """One line of text about the pipeline.

        Example:
            >>> InputPipeline.fit([torch.zeros(2, 3)], classes=["no", "yes"]).describe()
            '3 channels; classes: no, yes'
        """
        text = f"token ids below {self.vocab_size}" if self.schema is None else self.schema.describe()
        if self.missing != "error":
            text += f"; missing values: {self.missing}"
        for word, names in (("classes", self.classes), ("targets", self.targets)):
            if names is not None:
                text += f"; {word}: " + ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
        return text

    def facts(self) -> Dict[str, Any]:
        """Plain values for JSON; the numbers are read back bit for bit."""
        return {"schema": None if self.schema is None else self.schema.facts(), "missing": self.missing,
                "own_scale": self.own_scale, "mean": list(self.mean), "std": list(self.std),
                "classes": None if self.classes is None else list(self.classes),
                "targets": None if self.targets is None else list(self.targets), "vocab_size": self.vocab_size}

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> "InputPipeline":
        """The pipeline of such `facts`. Raises InputError for anything else."""
        try:
            schema = None if facts["schema"] is None else InputSchema.from_facts(facts["schema"])
            mean, std = (tuple(float(value) for value in facts[key]) for key in ("mean", "std"))
            classes, targets = (None if facts[key] is None else tuple(map(_text, facts[key])) for key in
                                ("classes", "targets"))
            size = facts["vocab_size"]
            if not (size is None or type(size) is int) or type(facts["own_scale"]) is not bool:
                raise TypeError("vocab_size or own_scale")
            return cls(schema, facts["missing"], facts["own_scale"], mean, std, classes, targets, size)
        except InputError:
            raise
        except (KeyError, TypeError, ValueError, OverflowError) as problem:
            raise InputError(f"InputPipeline: facts must be those that it wrote; got {problem!r}") from None


def _names(names: Optional[Sequence[str]]) -> Optional[Tuple[str, ...]]:
    return None if names is None else tuple(names)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value


def _measure(sequences: Sequence[Tensor], scaled: bool, width: int) -> Tuple[List[float], List[float]]:
    total, count = torch.zeros(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
    for block in _blocks(sequences, scaled):
        total += block.nansum(0)
        count += (~block.isnan()).sum(0)
    mean = total / count.clamp(min=1)
    spread = torch.zeros_like(mean)
    for block in _blocks(sequences, scaled):
        spread += (block - mean).square().nansum(0)
    std = (spread / count.clamp(min=1)).sqrt()
    return mean.tolist(), usable_std(std, mean).tolist()


def _blocks(sequences: Sequence[Tensor], scaled: bool) -> Iterator[Tensor]:
    """The steps of all sequences in large pieces, in float64."""
    found: List[Tensor] = []
    steps = 0
    for i in range(len(sequences)):
        x = sequences[i].double()
        found.append(own_scale(x) if scaled else x)
        steps += len(x)
        if steps >= _BLOCK:
            yield torch.cat(found)
            found, steps = [], 0
    if found:
        yield torch.cat(found)

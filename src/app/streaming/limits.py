"""Which rows a model accepts: rows that are not too large for it; and replacing missing values."""

from typing import Optional, Tuple

import numpy as np
import torch

from encoders.inputs import alone, input_weight
from encoders.pipeline import InputPipeline
from encoders.stack import Encoder

__all__ = ["Range", "fill_from", "prepared"]

USUAL = 1e4
"""Rows within this number of standard deviations from the mean are accepted without a closer check."""


class Range:
    """Decides which rows an encoder can process without values that are not finite.

    For such a row, the output of the encoder's input layer has a sum of squares that is finite in float32: the norm of
    the first block divides by its root, and would turn infinity into zeros.

    Args:
        encoder: the encoder.
        pipeline: the pipeline of its run, or None.
    """

    def __init__(self, encoder: Encoder, pipeline: Optional[InputPipeline]) -> None:
        self.encoder, self.pipeline = encoder, pipeline
        mean, std = ((0.0,), (1.0,)) if pipeline is None else (pipeline.mean, pipeline.std)
        self._low, self._high = (np.asarray(mean) + sign * USUAL * np.asarray(std) for sign in (-1, 1))

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """``[n]`` bool for ``[n, input_size]`` raw features; NaN is a missing value and is accepted."""
        with np.errstate(invalid="ignore"):
            good = (((features >= self._low) & (features <= self._high)) | np.isnan(features)).all(axis=1)
        odd = np.flatnonzero(~good)
        if len(odd):
            weight = input_weight(self.encoder.input)
            x = prepared(self.pipeline, torch.from_numpy(features[odd]).to(weight.device)).to(weight.dtype)
            hidden = alone(self.encoder.input, x)
            wide = hidden if hidden.dtype == torch.float64 else hidden.float()
            good[odd] = torch.isfinite(wide.square().sum(-1)).all(1).cpu().numpy()
        return good


def prepared(pipeline: Optional[InputPipeline], x: torch.Tensor) -> torch.Tensor:
    """``[n, D]`` raw features as the encoder reads them, each row separately; a missing value is the channel's mean."""
    if pipeline is None:
        return x
    if pipeline.missing != "error":
        mean = torch.tensor(pipeline.mean, dtype=x.dtype, device=x.device)
        x = torch.where(x.isnan(), mean, x)
    return pipeline.transform(x)


def fill_from(x: torch.Tensor, counts: torch.Tensor, last: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
    """Replace each missing value by the one before in its session and channel.

    Args:
        x: ``[total, D]``, session after session; NaN where a value is missing.
        counts: ``[N]`` int64, rows of each session, at least one.
        last: ``[N, D]``, the last value of each channel before; NaN where there is none.

    Returns:
        ``(x, last)``; NaN stays where a session has had no value yet.

    Example:
        >>> nan = float("nan")
        >>> x, last = fill_from(torch.tensor([[nan], [1.0], [nan]]), torch.tensor([1, 2]), torch.tensor([[5.0], [6.0]]))
        >>> x.flatten().tolist(), last.flatten().tolist()
        ([5.0, 1.0, 1.0], [5.0, 1.0])
    """
    number = torch.arange(len(counts), device=x.device)
    ends = counts.cumsum(0) + number  # of each session, with the row before it in front
    heads = ends - counts
    place = torch.arange(len(x), device=x.device) + torch.repeat_interleave(number, counts) + 1
    whole = x.new_empty(len(x) + len(counts), x.shape[1])
    whole[place], whole[heads] = x, last.to(x.dtype)
    row = torch.arange(len(whole), device=x.device)[:, None]
    first = torch.repeat_interleave(heads, counts + 1)[:, None]
    filled = whole.gather(0, torch.where(whole.isnan(), first, row).cummax(0).values)
    return filled[place], filled[ends]

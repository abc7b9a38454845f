"""How long the layers remember, measured on data: half-lives of the decay and write strengths of every head.

The half-life of a head is the number of steps in which its decay alone halves what the state stores; overwriting the
same keys makes it forget sooner. Figures are collected in histograms, batch by batch, so that any amount of data fits.
"""

import math
from typing import Any, Dict, Iterable, List, Optional, Tuple

import torch
from torch import Tensor

from encoders.gates import Gates
from encoders.probing import LayerGates, probe
from encoders.stack import Encoder

__all__ = ["LONGEST", "QUANTILES", "measure_memory"]

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
LONGEST = 1e6
"""Largest half-life in steps; larger ones count as this one."""

_SHORTEST, _BINS, _STRENGTH_BINS = 1e-2, 1600, 50


class _Head:
    """Counts of one head of one layer."""

    def __init__(self, channels: int) -> None:
        self.tokens = 0
        self.total = torch.zeros(channels, dtype=torch.float64)
        self.lives = torch.zeros(_BINS, dtype=torch.float64)
        self.strengths = torch.zeros(_STRENGTH_BINS, dtype=torch.float64)
        self.strength_sum = 0.0

    def add(self, log_decay: Tensor, strength: Tensor, strongest: float) -> None:
        """``[tokens, channels]`` each."""
        self.tokens += len(log_decay)
        self.total += log_decay.sum(0)
        place = (half_life(log_decay) / _SHORTEST).log() / math.log(LONGEST / _SHORTEST)
        self.lives += torch.bincount((place * (_BINS - 1)).round().long().flatten(), minlength=_BINS)
        bins = (strength / strongest * _STRENGTH_BINS).long().clamp(0, _STRENGTH_BINS - 1)
        self.strengths += torch.bincount(bins.flatten(), minlength=_STRENGTH_BINS)
        self.strength_sum += float(strength.mean(1).sum())

    def facts(self) -> Dict[str, Any]:
        channels = half_life(self.total / max(self.tokens, 1)).tolist()
        share = self.lives.cumsum(0) / self.lives.sum().clamp(min=1)
        found = [int((share >= q).nonzero()[0]) for q in QUANTILES]
        lives = [_SHORTEST * (LONGEST / _SHORTEST) ** (i / (_BINS - 1)) for i in found]
        return {
            "half_life": _round(_middle(channels)),
            "channels": [_round(value) for value in channels],
            "quantiles": [_round(value) for value in lives],
            "strength": _round(self.strength_sum / max(self.tokens, 1)),
            "strength_histogram": self.strengths.long().tolist(),
        }


def half_life(log_decay: Tensor) -> Tensor:
    """Steps in which ``exp(log_decay)`` a step halves the state; from 0.01 to `LONGEST`.

    Example:
        >>> half_life(torch.tensor([math.log(0.5), 0.0])).tolist()
        [1.0, 1000000.0]
    """
    return (-math.log(2) / log_decay.clamp(max=-1e-30)).clamp(_SHORTEST, LONGEST)


def measure_memory(
    encoder: Encoder, batches: Iterable[Tuple[Tensor, Optional[Tensor], Optional[Tensor]]], most_tokens: int = 200_000
) -> Optional[Dict[str, Any]]:
    """Half-lives and write strengths of every head.

    Args:
        encoder: on the device of the data.
        batches: ``(x, lengths, cu_seqlens)`` as for `Encoder.forward`.
        most_tokens: no further batch is read after this many tokens.

    Returns:
        None if the strategy does not report it, else values for JSON: ``tokens`` read, ``strength_name`` and
            ``strongest``
        (the end of its range), ``quantiles`` (which), and ``layers``, a list of ``layer``, ``backward`` and ``heads``.
        A head has ``half_life`` (of the mean log decay; the median of its channels), ``channels`` (of each),
        ``quantiles`` (over tokens and channels), ``strength`` (the mean) and ``strength_histogram``.
    """
    counts: Dict[Tuple[int, bool], List[_Head]] = {}
    last: Optional[Gates] = None
    tokens = 0
    for x, lengths, cu_seqlens in batches:
        found = probe(encoder, x, lengths=lengths, cu_seqlens=cu_seqlens)
        for layer in found:
            _count(counts, layer)
        if not found:
            return None
        last = found[0].gates
        tokens += len(last.log_decay)
        if tokens >= most_tokens:
            break
    if last is None:
        return None
    layers = [{"layer": layer, "backward": backward, "heads": [head.facts() for head in heads]}
              for (layer, backward), heads in sorted(counts.items())]
    return {"tokens": tokens, "strength_name": last.strength_name, "strongest": last.strongest,
            "quantiles": list(QUANTILES), "layers": layers}


def _count(counts: Dict[Tuple[int, bool], List[_Head]], found: LayerGates) -> None:
    decay, strength = found.gates.log_decay.double().cpu(), found.gates.strength.double().cpu()
    _, heads, channels = decay.shape
    mine = counts.setdefault((found.layer, found.backward), [_Head(channels) for _ in range(heads)])
    for i, head in enumerate(mine):
        head.add(decay[:, i], strength[:, i], found.gates.strongest)


def _middle(values: List[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).quantile(0.5))


def _round(value: float) -> float:
    """Six digits: people read the file too."""
    return float(f"{value:.6g}")

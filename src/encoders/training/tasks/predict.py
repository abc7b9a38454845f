"""Predictions of an encoder and its task for many sequences."""

import time
from typing import Any, Dict, Iterable, List, NamedTuple, Optional

import torch
from torch import Tensor

from encoders.stack import Encoder
from encoders.training.data.batches import Batch
from encoders.training.tasks.pieces import encode_in_pieces
from encoders.training.tasks.scores import Scores
from encoders.training.tasks.task import Task

__all__ = ["Evaluation", "Prediction", "evaluate", "to_device"]


class Prediction(NamedTuple):
    """Predictions for a set of sequences, on the CPU, in the order of the batches.

    Attributes:
        embeddings: ``[N, hidden_size]``, the pooled output of the encoder.
        lengths: ``[N]`` int64, steps of each sequence.
        columns: by name, ``[N, ...]`` or per step ``[total, ...]``: ``predicted`` and ``probability`` of classes,
            ``value`` of numbers.
        targets: the truth, in the same layout.
    """

    embeddings: Tensor
    lengths: Tensor
    columns: Dict[str, Tensor]
    targets: Tensor


class Evaluation(NamedTuple):
    """Predictions and their figures.

    Attributes:
        prediction: of every sequence.
        figures: as `encoders.training.tasks.scores.Scores` gives them with ``full``.
        confusion: ``[classes][classes]``, true by predicted class, or None.
        seconds: that the batches took, loading included.
    """

    prediction: Prediction
    figures: Dict[str, float]
    confusion: Optional[List[List[int]]]
    seconds: float

    @property
    def tokens_per_s(self) -> float:
        """Real tokens, without padding."""
        return float(self.prediction.lengths.sum()) / max(self.seconds, 1e-9)

    @property
    def sequences_per_s(self) -> float:
        return len(self.prediction.lengths) / max(self.seconds, 1e-9)


def evaluate(encoder: Encoder, task: Task, batches: Iterable[Batch], pieces: Optional[int] = None,
             carry: bool = True) -> Evaluation:
    """Encode and evaluate all batches, on this process alone.

    Args:
        encoder: its mode (training or evaluation) is restored, training or not.
        task: on the same device.
        batches: e.g. `SequenceDataModule.test_batches`; they are moved to the encoder's device.
        pieces, carry: see `encoders.training.tasks.pieces.encode_in_pieces`; None feeds sequences whole.
    """
    weight = next(encoder.parameters())
    scores = Scores(task, full=True, together=False).to(weight.device)
    embeddings: List[Tensor] = []
    lengths: List[Tensor] = []
    columns: Dict[str, List[Tensor]] = {}
    targets: List[Tensor] = []
    training = encoder.training
    encoder.eval()
    start = time.perf_counter()
    with torch.inference_mode():
        for batch in batches:
            batch = to_device(batch, weight)
            out = batch.encode(encoder) if pieces is None else encode_in_pieces(encoder, batch, pieces, carry)
            outputs = task(out)
            scores.update(outputs, batch)
            where = batch.steps() if task.spec.per_step else None
            for name, column in task.predict(outputs).items():
                columns.setdefault(name, []).append(_rows(column, where))
            targets.append(_rows(batch.targets, where))
            embeddings.append(out.embedding.cpu())
            lengths.append(batch.lengths.cpu())
    seconds = time.perf_counter() - start
    encoder.train(training)
    joined = {name: torch.cat(parts) for name, parts in columns.items()}
    prediction = Prediction(torch.cat(embeddings), torch.cat(lengths), joined, torch.cat(targets))
    return Evaluation(prediction, scores.compute(), scores.confusion(), seconds)


def _rows(values: Tensor, where: Optional[Tensor]) -> Tensor:
    return (values if where is None else values[where]).cpu()


def to_device(batch: Batch, weight: Tensor) -> Batch:
    """The batch on the device of a weight, with features in its dtype."""
    def place(t: Any) -> Any:
        return t if t is None else t.to(weight.device)

    x = place(batch.x)
    x = x.to(weight.dtype) if x.is_floating_point() else x
    return Batch(x, place(batch.lengths), place(batch.targets), place(batch.cu_seqlens))

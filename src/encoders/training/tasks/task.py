"""Heads: from the output of an encoder to the outputs of a task, a loss and predictions."""

from typing import Dict, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from encoders.stack import EncoderOutput
from encoders.training.data.sequences import IGNORE
from encoders.training.tasks.spec import TaskSpec

__all__ = ["Classes", "Task", "Values", "build_task"]


class Task(nn.Module):
    """A linear head on the embedding (one output a sequence) or on the hidden states (one for each step).

    Args:
        spec: what to learn.
        hidden_size: the encoder's.
    """

    def __init__(self, spec: TaskSpec, hidden_size: int) -> None:
        super().__init__()
        self.spec = spec
        self.head = nn.Linear(hidden_size, spec.outputs)

    def forward(self, out: EncoderOutput) -> Tensor:
        """``[N, outputs]``, or per step ``[B, T, outputs]``, in which outputs at padding have no meaning."""
        read = out.hidden if self.spec.per_step else out.embedding
        return self.head(read.to(self.head.weight.dtype))

    def has_target(self, targets: Tensor) -> Tensor:
        """Which targets are not missing: bool, ``[N]`` or ``[B, T]``."""
        raise NotImplementedError

    def loss(self, outputs: Tensor, targets: Tensor, smoothing: float = 0.0,
             class_weight: Optional[Tensor] = None) -> Tuple[Tensor, Tensor]:
        """The mean over all targets, and the weight of that mean among those of other batches and processes.

        Args:
            outputs: as from `forward`.
            targets: ``[N]`` or ``[B, T]`` classes, ``[N, K]`` or ``[B, T, K]`` values.
            smoothing: share of the target that is spread over all classes.
            class_weight: ``[outputs]``, how much an example of each class counts.

        Returns:
            ``(mean, weight)``: float32 scalars; zero and zero where there is no target.
        """
        raise NotImplementedError

    def predict(self, outputs: Tensor) -> Dict[str, Tensor]:
        """Predictions, by name of the column: ``predicted`` and ``probability``, or ``value``."""
        raise NotImplementedError

    def tensors(self) -> Dict[str, Tensor]:
        """The tensors that a run's folder holds."""
        return dict(self.state_dict())


class Classes(Task):
    """One of several classes: softmax and cross-entropy."""

    def has_target(self, targets: Tensor) -> Tensor:
        return targets != IGNORE

    def loss(self, outputs: Tensor, targets: Tensor, smoothing: float = 0.0,
             class_weight: Optional[Tensor] = None) -> Tuple[Tensor, Tensor]:
        outputs, targets = outputs.flatten(0, -2), targets.flatten()
        valid = self.has_target(targets)
        weight = valid.sum().float() if class_weight is None else class_weight[targets[valid]].sum()
        if not bool(weight > 0):
            return outputs.sum() * 0.0, weight  # keeps the graph connected: other processes wait for these gradients
        mean = F.cross_entropy(outputs, targets, weight=class_weight, label_smoothing=smoothing, ignore_index=IGNORE)
        return mean, weight

    def predict(self, outputs: Tensor) -> Dict[str, Tensor]:
        probability, predicted = outputs.float().softmax(-1).max(-1)
        return {"predicted": predicted, "probability": probability}


class Values(Task):
    """Real numbers: squared error in units of the targets' own spread.

    The head predicts in standardised units: ``value = output * target_std + target_mean``, ``[K]`` float64 each,
        measured
    on training targets.
    """

    target_mean: Tensor
    target_std: Tensor

    def __init__(self, spec: TaskSpec, hidden_size: int) -> None:
        super().__init__(spec, hidden_size)
        self.register_buffer("target_mean", torch.zeros(spec.outputs, dtype=torch.float64))
        self.register_buffer("target_std", torch.ones(spec.outputs, dtype=torch.float64))

    def measure(self, targets: Tensor) -> None:
        """Take mean and spread of training targets ``[..., K]``, NaN left out."""
        wide = targets.reshape(-1, self.spec.outputs).double()
        wide = wide[~wide.isnan().any(-1)]
        std = wide.std(0, unbiased=False)
        self.target_mean.copy_(wide.mean(0))
        self.target_std.copy_(torch.where(std > 0, std, torch.ones_like(std)))

    def has_target(self, targets: Tensor) -> Tensor:
        return ~targets.isnan().any(-1)

    def loss(self, outputs: Tensor, targets: Tensor, smoothing: float = 0.0,
             class_weight: Optional[Tensor] = None) -> Tuple[Tensor, Tensor]:
        valid = self.has_target(targets)
        weight = valid.sum().float()
        if not bool(weight > 0):
            return outputs.sum() * 0.0, weight
        wanted = (targets[valid] - self.target_mean) / self.target_std
        return F.mse_loss(outputs[valid], wanted.to(outputs.dtype)), weight

    def predict(self, outputs: Tensor) -> Dict[str, Tensor]:
        return {"value": outputs * self.target_std + self.target_mean}


def build_task(spec: TaskSpec, hidden_size: int) -> Task:
    """The task of that kind, with a fresh head."""
    return {"classes": Classes, "values": Values}[spec.kind](spec, hidden_size)

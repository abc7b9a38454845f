"""An encoder with a linear head, as a Lightning module."""

from typing import Any, Dict, List, NamedTuple

import lightning
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from app.data.module import Batch
from app.training.optim import cosine_with_warmup, parameter_groups
from cfg.job import TrainJobConfig

__all__ = ["Classifier", "Prediction"]


class Prediction(NamedTuple):
    """What the model says about sequences, on the CPU.

    Attributes:
        embeddings: ``[N, hidden_size]``, the pooled output of the encoder.
        logits: ``[N, classes]``.
        labels: ``[N]`` int64, the truth.
    """

    embeddings: Tensor
    logits: Tensor
    labels: Tensor


class Classifier(lightning.LightningModule):
    """``logits = head(encoder(x).embedding)``, trained with cross-entropy.

    Args:
        encoder: an encoder as `encoders.build_encoder` makes it.
        hidden_size: width of its embedding.
        classes: number of classes.
        config: learning rate and its schedule, weight decay, label smoothing, noise and shifts.
    """

    def __init__(self, encoder: nn.Module, hidden_size: int, classes: int, config: TrainJobConfig) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(hidden_size, classes)
        self.config = config
        self.accuracy = MulticlassAccuracy(classes, average="micro")

    def forward(self, batch: Batch) -> Tensor:
        """``[B, classes]`` logits."""
        return self.head(self.encoder(batch.x, lengths=batch.lengths).embedding)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        batch = batch._replace(x=self._augment(batch.x))
        loss = F.cross_entropy(self(batch), batch.labels, label_smoothing=self.config.label_smoothing)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(batch.labels))
        return loss

    def _augment(self, x: Tensor) -> Tensor:
        """``[B, T, D]`` with noise and shifts; what becomes of pads does not matter, the encoder never sees them."""
        if self.config.offset:
            x = x + self.config.offset * torch.randn_like(x[:, :1])
        if self.config.noise:
            x = x + self.config.noise * torch.randn_like(x)
        return x

    def validation_step(self, batch: Batch, index: int) -> None:
        logits = self(batch)
        self.accuracy(logits, batch.labels)
        self.log("val_loss", F.cross_entropy(logits, batch.labels), batch_size=len(batch.labels))
        self.log("val_accuracy", self.accuracy, batch_size=len(batch.labels))

    def predict_step(self, batch: Batch, index: int) -> Prediction:
        embeddings = self.encoder(batch.x, lengths=batch.lengths).embedding
        return Prediction(embeddings.cpu(), self.head(embeddings).cpu(), batch.labels.cpu())

    def configure_optimizers(self) -> Dict[str, Any]:
        groups = parameter_groups(self, self.config.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=self.config.learning_rate)
        total = int(self.trainer.estimated_stepping_batches)
        warmup = round(self.config.warmup * total)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cosine_with_warmup(step, warmup, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def join(predictions: List[Prediction]) -> Prediction:
    """One `Prediction` from those of all batches."""
    return Prediction(*(torch.cat(parts) for parts in zip(*predictions)))

"""An encoder with a task on top, as a Lightning module."""

from typing import Any, Dict, List, Optional

import lightning
import torch
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from cfg.job import TrainJobConfig
from cfg.validation import config_error
from encoders.stack import Encoder
from encoders.training.data.batches import Batch
from encoders.training.loop.crop import crop
from encoders.training.loop.mask import mask
from encoders.training.loop.optim import parameter_groups, rate_factor
from encoders.training.loop.warp import warp
from encoders.training.tasks.mean import WeightedMean
from encoders.training.tasks.scores import Scores
from encoders.training.tasks.task import Task

__all__ = ["Learner", "class_weights"]


class Learner(lightning.LightningModule):
    """``outputs = task(encoder(x))``, trained with the task's loss.

    On several processes, each takes its share of a batch; the gradient is that of the mean over the whole batch,
    however unequal the shares.

    Args:
        encoder: an encoder as `encoders.build_encoder` makes it.
        task: the head and its loss.
        config: learning rate and its schedule, weight decay, label smoothing, augmentation.
        class_weight: ``[classes]``, how much an example of each class counts in training; None for all the same.
    """

    class_weight: Optional[Tensor]

    def __init__(self, encoder: Encoder, task: Task, config: TrainJobConfig,
                 class_weight: Optional[Tensor] = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.task = task
        self.config = config
        # By name and now: FSDP flattens parameters, so that matrices cannot be recognised later.
        decayed = {id(p) for p in parameter_groups(self, config.weight_decay)[0]["params"]}
        self._decayed = {name for name, parameter in self.named_parameters() if id(parameter) in decayed}
        self.register_buffer("class_weight", class_weight, persistent=False)
        self.train_loss = WeightedMean()
        self.scores = Scores(task)

    def forward(self, batch: Batch) -> Tensor:
        """The task's outputs."""
        return self.task(batch.encode(self.encoder))

    def training_step(self, batch: Batch, index: int) -> Tensor:
        if self.config.crop:
            batch = crop(batch, self.config.crop)
        if self.config.warp:
            batch = warp(batch, self.config.warp)
        outputs = self(batch._replace(x=self._augment(batch)))
        loss, weight = self.task.loss(outputs, batch.targets, self.config.label_smoothing, self.class_weight)
        self.train_loss.update(loss.detach(), weight)
        self.log("train_loss", self.train_loss, on_step=False, on_epoch=True)
        return loss * self._share(weight)

    def _share(self, weight: Tensor) -> Any:
        """Turn the average of gradients over processes into the mean over all targets of the batch."""
        world = self.trainer.world_size if self._trainer is not None else 1
        if world == 1:
            return 1.0
        total = weight.detach().clone()
        torch.distributed.all_reduce(total)
        return weight * world / total.clamp(min=1e-20)

    def _augment(self, batch: Batch) -> Tensor:
        """The features with augmentation; padding may change, because the encoder does not read it."""
        x, config = batch.x, self.config
        if not x.is_floating_point():
            return x
        if config.offset and not self.task.spec.shifts:
            x = x + self._of_each(batch, config.offset)
        if config.amplitude:
            x = x * (1 + self._of_each(batch, config.amplitude))
        if config.noise:
            x = x + config.noise * torch.randn_like(x)
        return mask(batch._replace(x=x), config.mask) if config.mask else x

    @staticmethod
    def _of_each(batch: Batch, std: float) -> Tensor:
        """One random number for each channel of each sequence, in the shape of the features or ready to be spread."""
        x = batch.x
        if batch.cu_seqlens is None:
            return std * torch.randn_like(x[:, :1])
        return (std * torch.randn(len(batch.lengths), x.shape[2]).to(x))[batch.rows()]

    def validation_step(self, batch: Batch, index: int) -> None:
        self.scores.update(self(batch), batch)

    def on_validation_epoch_end(self) -> None:
        self.log_dict({f"val_{name}": value for name, value in self.scores.compute().items()})
        self.scores.reset()

    def configure_gradient_clipping(self, optimizer: Any, gradient_clip_val: Optional[float] = None,
                                    gradient_clip_algorithm: Optional[str] = None) -> None:
        """Clip as Lightning does; with FSDP by the norm over the pieces of all processes, which Lightning does not
        support."""
        if isinstance(self.trainer.strategy, FSDPStrategy) and gradient_clip_val is not None:
            getattr(self.trainer.strategy.model, "clip_grad_norm_")(gradient_clip_val)  # of FullyShardedDataParallel
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        rate = self.config.learning_rate
        if rate is None:
            raise config_error("job.learning_rate", "must be a number once the training data are known", rate)
        parts: Dict[bool, List[nn.Parameter]] = {True: [], False: []}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                parts[name.replace("_fsdp_wrapped_module.", "") in self._decayed].append(parameter)
        groups = [{"params": parts[True], "weight_decay": self.config.weight_decay},
                  {"params": parts[False], "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=rate)
        total = self._steps()
        warmup, kind = round(self.config.warmup * total), self.config.schedule
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(step, warmup, total, kind))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _steps(self) -> int:
        """Of the whole schedule.

        Lightning's ``estimated_stepping_batches`` would begin a pass over the data, which under FSDP is too early: only
        after this is the checkpoint read that says where in the data to go on.
        """
        data, limit = getattr(self.trainer, "datamodule"), self.trainer.limit_train_batches
        batches = len(data.train_dataloader())
        batches = min(batches, limit) if isinstance(limit, int) else batches
        return (self.trainer.max_epochs or 1) * -(-batches // self.trainer.accumulate_grad_batches)


def class_weights(targets: Any, classes: int) -> Tensor:
    """``[classes]`` weights under which every class of the training targets counts the same; their mean over the
    targets is 1, and a class without any has 1.

    Example:
        >>> class_weights(torch.tensor([0, 0, 0, 1]), 2).tolist()
        [0.6666666865348816, 2.0]
    """
    flat = targets if isinstance(targets, Tensor) else torch.cat(list(targets))
    counts = torch.bincount(flat[flat >= 0].flatten(), minlength=classes).double()
    weights = counts.sum() / ((counts > 0).sum() * counts.clamp(min=1))
    return torch.where(counts > 0, weights, torch.ones_like(weights)).float()

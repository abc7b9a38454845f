"""Lightning's trainer, made from the config."""

from pathlib import Path
from typing import Any, Union

import lightning

from cfg.app import AppConfig
from cfg.trainer import PRECISIONS
from encoders.training.loop.checkpoint_io import SafeCheckpointIO

__all__ = ["make_trainer"]


def make_trainer(config: AppConfig, folder: Path, **more: Any) -> lightning.Trainer:
    """The trainer that a run's config describes.

    Args:
        config: the whole config.
        folder: of the run.
        more: what the config does not hold: length, callbacks, logger, limits.
    """
    trainer = config.trainer
    return lightning.Trainer(
        accelerator=trainer.accelerator,
        devices=trainer.devices,
        num_nodes=trainer.num_nodes,
        strategy=_strategy(trainer.strategy),
        precision=next(one for one in PRECISIONS if one == trainer.precision),  # a str, as Lightning's literal
        accumulate_grad_batches=trainer.accumulate_grad_batches,
        detect_anomaly=trainer.detect_anomaly,
        gradient_clip_val=trainer.gradient_clip_val,
        deterministic=config.deterministic,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # our batches are cut for every process already
        plugins=[SafeCheckpointIO()],
        **more,
    )


def _strategy(name: str) -> Union[str, Any]:
    if name != "fsdp":
        return name
    from encoders.training.loop.sharded import ShardedStrategy

    return ShardedStrategy()

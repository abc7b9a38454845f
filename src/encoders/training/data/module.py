"""The Lightning data module: any source, split, standardised and batched."""

from functools import partial
from typing import Any, Callable, Dict, List, Optional, Tuple

import lightning
import torch
from torch.utils.data import DataLoader

from cfg.data import DataConfig
from encoders.errors import data_error
from encoders.pipeline import InputPipeline
from encoders.training.data.batches import collate, pack
from encoders.training.data.prepared import Prepared
from encoders.training.data.sampler import BatchSampler
from encoders.training.data.sequences import SequenceData, SequenceSet
from encoders.training.data.split import class_counts, split
from encoders.training.tasks.spec import TaskSpec

__all__ = ["SequenceDataModule", "loader"]

USUAL_BATCH, USUAL_SHARE = 16, 0.2  # of a config that leaves the choice, where no training makes it


def _check_steps(config: DataConfig, parts: Dict[str, Optional[SequenceSet]]) -> None:
    """Refuse a sequence without a next step."""
    for name, part in parts.items():
        if part is not None and max(part.lengths, default=0) < 2:
            raise data_error(f"data={config.name}", f"{name.replace('_', ' ')} set", "must have a sequence of at least "
                             "two steps for job.objective=next_step, which needs two steps: one to see, one to predict",
                             f"{len(part)} of one step")


class _Passes(DataLoader):
    """Reports the beginning of a pass over the data, before anything is drawn for it."""

    begin: Callable[[], None] = staticmethod(lambda: None)

    def __iter__(self) -> Any:
        self.begin()
        return super().__iter__()


def loader(data: Prepared, config: DataConfig, per_step: bool, generator: Optional[torch.Generator] = None,
           rank: int = 0, world: int = 1, behind: int = 0) -> DataLoader:
    """Batches of a set, padded or packed as the config says.

    Args:
        data: the sequences.
        config: sizes of batches.
        per_step: whether there is one target for each step.
        generator: draws the order; None keeps it.
        rank, world, behind: as in `encoders.training.data.sampler.BatchSampler`.
    """
    size = config.batch_size or USUAL_BATCH
    sampler = BatchSampler(data.lengths, size, config.batch_tokens, config.packed, generator, rank, world, behind)
    join = partial(pack if config.packed else collate, per_step=per_step)
    return _Passes(data, batch_sampler=sampler, generator=generator, collate_fn=join)


class SequenceDataModule(lightning.LightningDataModule):
    """Makes batches of one `SequenceData`.

    Args:
        data: what the source read.
        config: sizes of batches, share of the training set to validate on, whether to standardise.
        seed: fixes the split and the order of the batches.
        validate: hold ``config.validation_fraction`` of the training set out; if False, train on all of it.
        task: the task; None for one class for each sequence.

    Attributes:
        inside: number of batches of this pass that are done, for a checkpoint; 0 between two passes.
        restarting: whether the state comes from a checkpoint and no step has been taken since.
        pipeline: prepares the data for the encoder; measured on training sequences only.
    """

    def __init__(self, data: SequenceData, config: DataConfig, seed: int, validate: bool = True,
                 task: Optional[TaskSpec] = None) -> None:
        super().__init__()
        self.config = config
        self.per_step, self.shift = (task.per_step, task.shifts) if task is not None else (False, False)
        self.train: SequenceSet = data.train
        self.validation: Optional[SequenceSet] = None
        if validate:
            share = USUAL_SHARE if config.validation_fraction is None else config.validation_fraction
            kept, held = split(data.train, share, seed, data.classes, class_counts(data))
            self.train, self.validation = data.train.subset(kept), data.train.subset(held)
        self.tests: Dict[str, SequenceSet] = dict(data.tests)
        if self.shift:
            _check_steps(config, {"training": self.train, "validation": self.validation, **self.tests})
        self.pipeline = self._measure(data)
        # Kept here and not in a loader, so that each epoch continues where the one before stopped, also after a
        # restart.
        self._order = torch.Generator().manual_seed(seed)
        self._begun = self._order.get_state()  # before the pass that is going on
        self.inside = 0
        self.restarting = False

    def keep(self, batches: int) -> None:
        """Train and validate on this number of batches only, with sequences spread evenly over the set."""
        count = min(len(self.train), batches * (self.config.batch_size or USUAL_BATCH))
        places = [i * len(self.train) // count for i in range(count)]
        self.train = self.validation = self.train.subset(places)

    def prepared(self, data: SequenceSet) -> Prepared:
        """A set as the encoder gets it."""
        return Prepared(data, self.pipeline, self.shift)

    def train_dataloader(self) -> DataLoader:
        made = loader(self.prepared(self.train), self.config, self.per_step, self._order, *self._place(), self.inside)
        made.begin = partial(self._begin, made.batch_sampler)
        return made

    def _begin(self, sampler: Any) -> None:
        if self.restarting:  # Lightning 2.3 begins the first pass after a restart twice
            self._order.set_state(self._begun)
            sampler.behind = self.inside
        self._begun = self._order.get_state()

    def val_dataloader(self) -> List[DataLoader]:
        if self.validation is None:
            return []
        return [loader(self.prepared(self.validation), self.config, self.per_step, None, *self._place())]

    def test_batches(self, name: str = "test") -> DataLoader:
        """Batches of one test set, in its order."""
        return loader(self.prepared(self.tests[name]), self.config, self.per_step)

    def state_dict(self) -> Dict[str, Any]:
        return {"order": self._begun if self.inside else self._order.get_state(), "inside": self.inside}

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        self._begun, self.restarting = state["order"], True
        self._order.set_state(self._begun)
        self.inside = state.get("inside", 0)

    def _measure(self, data: SequenceData) -> InputPipeline:
        names = {"classes": data.classes, "targets": data.target_names}
        if data.vocab_size is not None:
            return InputPipeline.tokens(data.vocab_size, **names)
        config = self.config
        return InputPipeline.fit(self.train.sequences, data.schema, config.missing, config.standardize,
                                 bool(config.own_scale), **names)

    def _place(self) -> Tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

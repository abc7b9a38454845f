"""The Lightning data module: any source, split, standardised and batched."""

from typing import List, NamedTuple, Optional, Tuple

import lightning
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from app.data.sequences import SequenceData, SequenceSet, Standardizer, stratified_split
from cfg.data import DataConfig

__all__ = ["Batch", "SequenceDataModule", "collate"]


class Batch(NamedTuple):
    """Right-padded sequences.

    Attributes:
        x: ``[B, T, D]`` float32, zeros after each sequence.
        lengths: ``[B]`` int64.
        labels: ``[B]`` int64.
    """

    x: Tensor
    lengths: Tensor
    labels: Tensor


def collate(items: List[Tuple[Tensor, Tensor]]) -> Batch:
    """Pad to the longest sequence of the batch."""
    sequences = [sequence for sequence, _ in items]
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    return Batch(pad_sequence(sequences, batch_first=True), lengths, torch.stack([label for _, label in items]))


class SequenceDataModule(lightning.LightningDataModule):
    """Hands out batches of one `SequenceData`.

    Args:
        data: what the source read.
        config: batch size, share of the training set to validate on, whether to standardise.
        seed: fixes the split and the order of the batches.
        validate: hold ``config.validation_fraction`` of the training set out; if False, train on all of it.

    Attributes:
        standardizer: measured on the sequences that are trained on, and on nothing else.
    """

    def __init__(self, data: SequenceData, config: DataConfig, seed: int, validate: bool = True) -> None:
        super().__init__()
        self.config = config
        self.seed = seed
        self.train: SequenceSet = data.train
        self.validation: Optional[SequenceSet] = None
        if validate:
            kept, held = stratified_split(data.train.labels, config.validation_fraction, seed)
            self.train, self.validation = data.train.subset(kept), data.train.subset(held)
        fit = Standardizer.fit if config.standardize else lambda train: Standardizer.identity(data.input_size)
        self.standardizer = fit(self.train)
        self.train = self.standardizer(self.train)
        self.test = self.standardizer(data.test)
        self.validation = self.standardizer(self.validation) if self.validation is not None else None

    def train_dataloader(self) -> DataLoader:
        generator = torch.Generator().manual_seed(self.seed)
        return DataLoader(
            self.train, batch_size=self.config.batch_size, shuffle=True, generator=generator, collate_fn=collate
        )

    def val_dataloader(self) -> List[DataLoader]:
        return [] if self.validation is None else [self._in_order(self.validation)]

    def test_dataloader(self) -> DataLoader:
        return self._in_order(self.test)

    def predict_dataloader(self) -> DataLoader:
        return self._in_order(self.test)

    def _in_order(self, data: SequenceSet) -> DataLoader:
        return DataLoader(data, batch_size=self.config.batch_size, collate_fn=collate)

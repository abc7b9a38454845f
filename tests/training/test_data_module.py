"""Split, standardisation and batches."""

import dataclasses

import pytest
import torch

from app.errors import DataError
from cfg.data import DataConfig
from encoders.pipeline import InputPipeline
from encoders.training.data.batches import collate
from encoders.training.data.module import SequenceDataModule
from encoders.training.data.sequences import SequenceData, SequenceSet
from encoders.training.data.split import stratified_split


def make_data(count=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 9, (count,), generator=generator).tolist()
    sequences = [3 + 2 * torch.randn(length, 3, generator=generator) for length in lengths]
    train = SequenceSet(sequences, torch.arange(count) % 4)
    test = SequenceSet([sequence + 100 for sequence in sequences[:6]], torch.arange(6) % 4)
    return SequenceData(train, test, ["a", "b", "c", "d"], 3)


def test_split_is_stratified_disjoint_and_complete():
    labels = torch.tensor([0] * 30 + [1] * 10 + [2] * 5)
    kept, held = stratified_split(labels, 0.2, seed=3)
    assert sorted(kept + held) == list(range(45))
    assert labels[held].bincount().tolist() == [6, 2, 1]
    assert (kept, held) == stratified_split(labels, 0.2, seed=3)
    assert held != stratified_split(labels, 0.2, seed=4)[1]


def test_split_keeps_every_class_on_both_sides():
    kept, held = stratified_split(torch.tensor([0, 0, 1, 1]), 0.01, seed=0)
    assert torch.tensor([0, 0, 1, 1])[held].tolist() == [0, 1]
    kept, held = stratified_split(torch.tensor([0, 0, 1, 1]), 0.99, seed=0)
    assert torch.tensor([0, 0, 1, 1])[kept].tolist() == [0, 1]
    with pytest.raises(DataError, match="must have two sequences of class 1, to hold one out; got 1"):
        stratified_split(torch.tensor([0, 0, 1]), 0.5, seed=0)


def test_standardisation_sees_training_sequences_only():
    data = make_data()
    module = SequenceDataModule(data, DataConfig(name="x"), seed=0)
    steps = torch.cat([sample.x for sample in module.prepared(module.train)])
    assert torch.allclose(steps.mean(0), torch.zeros(3), atol=1e-5)
    assert torch.allclose(steps.std(0, unbiased=False), torch.ones(3), atol=1e-5)
    changed = dataclasses.replace(data, test=SequenceSet([s * 7 for s in data.test.sequences], data.test.targets))
    again = SequenceDataModule(changed, DataConfig(name="x"), seed=0)
    assert again.pipeline == module.pipeline
    held = set(range(40)) - set(stratified_split(data.train.targets, 0.2, 0)[0])
    spoiled = [s + 1000 if i in held else s for i, s in enumerate(data.train.sequences)]
    changed = dataclasses.replace(data, train=SequenceSet(spoiled, data.train.targets))
    again = SequenceDataModule(changed, DataConfig(name="x"), seed=0)
    assert again.pipeline == module.pipeline


def test_standardisation_survives_a_constant_channel_and_can_be_off():
    data = SequenceSet([torch.tensor([[1.0, 5.0], [3.0, 5.0]])], torch.tensor([0]))
    out = InputPipeline.fit(data.sequences).transform(data.sequences[0])
    assert torch.equal(out, torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))
    raw = make_data()
    module = SequenceDataModule(raw, DataConfig(name="x", standardize=False), seed=0)
    assert torch.equal(module.prepared(module.tests["test"])[0].x, raw.test.sequences[0])


def test_rounding_is_no_spread():
    data = SequenceSet([torch.full((7, 1), 0.1, dtype=torch.float64), torch.full((4, 1), 0.1, dtype=torch.float64)],
                       torch.tensor([0, 1]))
    found = InputPipeline.fit(data.sequences).transform(torch.tensor([[0.2]], dtype=torch.float64))
    assert abs(float(found)) < 1


def test_without_validation_everything_trains():
    module = SequenceDataModule(make_data(), DataConfig(name="x"), seed=0, validate=False)
    assert len(module.train) == 40 and module.val_dataloader() == []


def test_batches_hold_every_sequence_once_padded_with_zeros():
    module = SequenceDataModule(make_data(), DataConfig(name="x", batch_size=7), seed=0)
    batches = list(module.test_batches())
    assert sum(len(batch.targets) for batch in batches) == 6
    train = module.prepared(module.train)
    batch = collate([train[i] for i in range(5)])
    for row, length, sample in zip(batch.x, batch.lengths, train):
        assert torch.equal(row[:length], sample.x) and not row[length:].any()
    assert batch.x.shape[1] == batch.lengths.max()


def test_order_of_training_follows_the_seed():
    def first(seed):
        module = SequenceDataModule(make_data(), DataConfig(name="x"), seed, validate=False)
        return next(iter(module.train_dataloader()))

    assert torch.equal(first(1).targets, first(1).targets)
    assert not torch.equal(first(1).x, first(2).x)


@pytest.mark.parametrize("settings", [{}, {"batch_tokens": 20}, {"batch_tokens": 20, "packed": True}])
def test_a_restart_inside_a_pass_hands_out_the_rest_of_it(settings):
    def module():
        return SequenceDataModule(make_data(), DataConfig(name="x", batch_size=3, **settings), 0, validate=False)

    def batches(loader):
        return [batch.x.flatten().tolist() for batch in loader]

    whole = module()
    loader = whole.train_dataloader()
    passes = [batches(loader) for _ in range(3)]
    assert len(passes[0]) > 6 and passes[0] != passes[1]
    cut = module()
    loader = cut.train_dataloader()
    batches(loader)
    steps = iter(loader)
    for _ in range(4):
        next(steps)
    cut.inside = 4
    state = cut.state_dict()
    again = module()
    again.load_state_dict(state)
    loader = again.train_dataloader()
    assert len(loader) == len(passes[1]), "the length of a pass does not change"
    next(iter(loader))  # Lightning 2.3 begins a pass twice before the first step
    assert batches(loader) == passes[1][4:]
    again.restarting = False  # as the first step does
    assert batches(loader) == passes[2]

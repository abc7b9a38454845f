"""The Lightning module: what training changes in its input, and what it does not."""

import pytest
import torch
from torch import nn

from cfg.job import TrainJobConfig
from encoders import build_encoder
from encoders.training.data.batches import Batch, collate, pack
from encoders.training.data.sequences import Sample
from encoders.training.loop.learner import Learner
from encoders.training.tasks.predict import evaluate
from encoders.training.tasks.spec import TaskSpec
from encoders.training.tasks.task import build_task

SPEC = TaskSpec("classify", "classes", 2, False, ["no", "yes"])


class Recorder(nn.Module):
    """Stands where the encoder stands and keeps what it was given."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x, lengths):
        self.seen = x
        return type("Output", (), {"embedding": x.mean(dim=1)})


def make(**config):
    module = Learner(Recorder(), build_task(SPEC, 3), TrainJobConfig(**config))
    module.log = lambda *args, **kwargs: None
    return module, Batch(torch.zeros(64, 50, 3), torch.full((64,), 50), torch.arange(64) % 2)


def test_noise_is_new_at_every_value():
    module, batch = make(noise=0.5, offset=0.0)
    module.training_step(batch, 0)
    assert module.encoder.seen.std() == pytest.approx(0.5, rel=0.05)
    assert module.encoder.seen.mean(dim=1).std() < 0.5 / 50**0.5 * 1.3


def test_offset_is_one_shift_for_each_sequence_and_channel():
    module, batch = make(offset=0.5)
    module.training_step(batch, 0)
    seen = module.encoder.seen
    assert torch.equal(seen, seen[:, :1].expand_as(seen))
    assert seen[:, 0].unique().numel() == 64 * 3 and seen.std() == pytest.approx(0.5, rel=0.2)


def test_a_stretch_of_each_sequence_is_hidden_in_training():
    module, batch = make(mask=1.0, offset=0.0)
    batch.x.fill_(1.0)
    module.training_step(batch, 0)
    hidden = (module.encoder.seen == 0).float().mean(dim=(1, 2))
    assert hidden.mean() == pytest.approx(0.5, rel=0.3) and len(hidden.unique()) > 20


def test_validation_and_prediction_see_the_data_as_they_are():
    module, batch = make(offset=0.5, noise=0.5, mask=1.0)
    module.validation_step(batch, 0)
    assert torch.equal(module.encoder.seen, batch.x)
    evaluate(module.encoder, module.task, [batch])
    assert torch.equal(module.encoder.seen, batch.x)
    assert not batch.x.any()


def test_loss_depends_neither_on_padding_nor_on_packing():
    torch.manual_seed(0)
    config = {"name": "gated_deltanet", "input_size": 3, "hidden_size": 16, "direction": "bidirectional"}
    encoder = build_encoder(config)
    module = Learner(encoder, build_task(SPEC, 16), TrainJobConfig(offset=0.0))
    module.log = lambda *args, **kwargs: None
    items = [Sample(torch.randn(length, 3), torch.tensor(length % 2)) for length in (1, 7, 4)]
    batch = collate(items)
    wide = batch._replace(x=torch.cat([batch.x, torch.full((3, 5, 3), float("nan"))], dim=1))
    torch.testing.assert_close(module.training_step(wide, 0), module.training_step(batch, 0))
    torch.testing.assert_close(module.training_step(pack(items), 0), module.training_step(batch, 0))
    alone = [module.training_step(collate([item]), 0) for item in items]
    torch.testing.assert_close(torch.stack(alone).mean(), module.training_step(batch, 0))

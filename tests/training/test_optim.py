"""Which parameters have weight decay, and the schedule of the learning rate."""

import pytest
import torch
from torch import nn

from encoders import build_encoder
from encoders.training.loop.optim import parameter_groups, rate_factor


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(5, 4)
        self.linear = nn.Linear(4, 3)
        self.norm = nn.LayerNorm(3)
        self.rates = nn.Parameter(torch.zeros(3, 3))
        self.rates._no_weight_decay = True
        self.frozen = nn.Parameter(torch.zeros(2, 2), requires_grad=False)


def test_only_unmarked_matrices_are_decayed():
    module = Small()
    decayed, free = parameter_groups(module, 0.1)
    assert decayed["weight_decay"] == 0.1 and free["weight_decay"] == 0.0
    assert [id(p) for p in decayed["params"]] == [id(module.linear.weight)]
    wanted = [module.words.weight, module.linear.bias, module.norm.weight, module.norm.bias, module.rates]
    assert {id(p) for p in free["params"]} == {id(p) for p in wanted}


@pytest.mark.parametrize("name", ["gated_deltanet", "rwkv7"])
def test_every_trainable_parameter_of_an_encoder_is_in_one_group(name):
    encoder = build_encoder({"name": name, "input_size": 3})
    groups = parameter_groups(encoder, 0.1)
    found = [id(p) for group in groups for p in group["params"]]
    assert sorted(found) == sorted(id(p) for p in encoder.parameters() if p.requires_grad)


def test_decay_rates_of_gated_deltanet_are_not_decayed():
    encoder = build_encoder({"name": "gated_deltanet", "input_size": 3})
    free = {id(p) for p in parameter_groups(encoder, 0.1)[1]["params"]}
    rates = [p for name, p in encoder.named_parameters() if name.endswith(("A_log", "dt_bias"))]
    assert len(rates) == 4 and all(id(p) in free for p in rates)


def test_learning_rate_rises_then_falls_to_zero():
    factors = [rate_factor(step, 10, 100) for step in range(101)]
    assert factors[0] == pytest.approx(0.1) and max(factors) == 1.0 == factors[9]
    assert factors[:10] == sorted(factors[:10]) and factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[100] == pytest.approx(0.0, abs=1e-12)
    assert rate_factor(0, 0, 1) == 1.0 and rate_factor(7, 0, 5) == pytest.approx(0.0, abs=1e-12)

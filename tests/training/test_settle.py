"""What is chosen from the training data: by which facts, never by the test set, and never against a setting."""

import dataclasses
import json
import logging

import torch

from app_runs import compose_app
from cfg.trainer import TrainerConfig
from cfg.validation import ConfigError
from encoders.training.data.sequences import SequenceData, SequenceSet
from encoders.training.loop.budget import passes
from encoders.training.settle import facts_of, settle
from encoders.training.tasks.spec import task_spec
from myfla.testing import cases, raises


def some(lengths, channels=1, scale=None, level=0.0, seed=0):
    """Two classes; sequence i is ``scale[i]`` large and stands ``level * i`` high."""
    draw = torch.Generator().manual_seed(seed)
    rows = [torch.randn(n, channels, generator=draw, dtype=torch.float64) for n in lengths]
    rows = [(scale[i] if scale else 1.0) * (x - x.mean(0)) / x.std(0) + level * i for i, x in enumerate(rows)]
    return SequenceSet(rows, torch.arange(len(rows)) % 2)


def data_of(train, test=None):
    return SequenceData(train, test, ["a", "b"], input_size=train.sequences[0].shape[1])


def settled(train, *overrides, test=None):
    config, data = compose_app(["data=ts", "data.train_path=x", *overrides]), data_of(train, test)
    return settle(config, data, task_spec("classify", data))


LONG = some([100] * 40)


def test_long_sequences_get_a_stem_and_short_ones_none():
    assert settled(LONG)[0].encoder.stem == "inception" and settled(some([24] * 40))[0].encoder.stem == "none"
    strides = {n: settled(some([n] * 20))[0].encoder.stem_stride for n in (100, 220, 230, 440, 450, 2000)}
    assert strides == {100: 2, 220: 2, 230: 4, 440: 4, 450: 8, 2000: 8}


def test_the_stem_is_for_whole_sequences_that_are_read_from_both_ends():
    assert settled(LONG, "encoder.direction=causal")[0].encoder.stem == "none"
    assert settled(some([100] * 20, channels=80))[0].encoder.stem == "none"
    steps = SequenceData(SequenceSet([torch.randn(100, 1)] * 4, [torch.zeros(100, dtype=torch.int64)] * 4), None,
                         ["a", "b"], input_size=1, per_step=True)
    config = compose_app(["data=ts", "data.train_path=x"])
    chosen = settle(config, steps, task_spec("classify", steps))[1]
    assert chosen["encoder.stem"] == "none" and chosen["trainer.max_epochs"] == 20
    assert chosen["data.validation_fraction"] == 0.2 and chosen["data.own_scale"] is False


def test_a_small_set_is_trained_on_as_a_whole_for_some_steps_and_a_large_one_is_not():
    small, large = settled(LONG)[0], settled(some([10] * 1000))[0]
    assert small.data.validation_fraction == 0 and small.trainer.max_steps == 600 and small.trainer.max_epochs is None
    assert large.data.validation_fraction == 0.2 and large.trainer.max_epochs == 20 and large.trainer.max_steps is None
    assert [settled(some([10] * n))[0].data.batch_size for n in (4, 36, 50, 200)] == [4, 18, 17, 17]
    assert settled(some([4000] * 60))[0].trainer.max_steps < 300  # long ones cost more


def test_few_sequences_skip_layers_behind_convolutions():
    assert settled(LONG)[0].encoder.drop_path == 0.5 == settled(LONG, "encoder.stem=inception")[0].encoder.drop_path
    for train, *overrides in ((some([24] * 40),), (some([100] * 300),), (some([100] * 40, channels=2),),
                              (LONG, "encoder.stem=conv"), (LONG, "trainer.max_epochs=7")):
        assert settled(train, *overrides)[0].encoder.drop_path == 0
    assert settled(LONG, "encoder.drop_path=0.1")[0].encoder.drop_path == 0.1


def test_own_scales_where_they_span_orders_of_magnitude():
    wide = some([50] * 40, scale=[10.0 ** (i % 5 - 2) for i in range(40)])
    assert settled(wide)[0].data.own_scale and not settled(LONG)[0].data.own_scale
    assert not settled(wide, "encoder.direction=causal")[0].data.own_scale
    one = some([50] * 40, scale=[1e6, *[1.0] * 39])
    assert not settled(one)[0].data.own_scale


def test_shifts_where_sequences_have_levels_of_their_own():
    assert settled(some([20] * 40))[0].job.offset == 0 and settled(some([20] * 40, level=0.5))[0].job.offset == 0.3


def test_what_is_given_is_kept():
    given = {"encoder.stem": "none", "data.batch_size": 5, "data.validation_fraction": 0.5, "job.noise": 0.7,
             "trainer.max_steps": 9, "job.learning_rate": 0.1, "data.own_scale": True}
    config, chosen = settled(LONG, *(f"{key}={json.dumps(value)}" for key, value in given.items()))
    assert not set(given) & set(chosen)
    for key, value in given.items():
        group, name = key.split(".")
        assert getattr(getattr(config, group), name) == value
    stride = settled(LONG, "encoder.stem=inception", "encoder.stem_stride=8")[0].encoder
    assert (stride.stem, stride.stem_stride) == ("inception", 8)


def test_given_epochs_mean_what_they_always_meant():
    """With ``trainer.max_epochs`` a fifth is held out to choose the epoch by; the job's numbers are the known ones."""
    job = settled(some([24] * 40, level=1.0), "trainer.max_epochs=7")
    assert job[0].trainer.max_epochs == 7 and job[0].trainer.max_steps is None
    assert job[0].data.validation_fraction == 0.2 and job[0].data.batch_size == 16
    assert dataclasses.asdict(job[0].job) == dataclasses.asdict(type(job[0].job)())


def test_nothing_but_the_training_set_is_looked_at():
    class Shut:
        def __getattr__(self, name):
            raise AssertionError(f"the test set was asked for its {name}")

    assert settled(LONG, test=Shut())[1] == settled(LONG)[1]


def test_a_settled_config_comes_back_as_it_is(caplog):
    data = data_of(LONG)
    config = settled(LONG)[0]
    with caplog.at_level(logging.INFO):
        again, chosen = settle(config, data, task_spec("classify", data))
    assert again == config and chosen == {} and not caplog.records


def test_it_is_said(caplog):
    with caplog.at_level(logging.INFO):
        settled(LONG)
    (record,) = caplog.records
    assert record.getMessage().startswith("chosen from the training data (40 sequences of 1 channel, typically 100 "
                                          "steps): data.batch_size=20 data.validation_fraction=0.0 ")
    chosen = " encoder.stem=inception encoder.stem_stride=2 encoder.drop_path=0.5 trainer.max_steps=600 "
    assert chosen in record.getMessage()


def test_facts_leave_out_what_is_missing_and_stand_constant_data():
    rows = [torch.full((30, 2), 5.0, dtype=torch.float64) for _ in range(4)]
    flat = facts_of(SequenceSet(rows, torch.zeros(4)), 2, True)
    assert flat.span == 1 and flat.levels == 0
    holes = [x.clone() for x in LONG.sequences]
    for x in holes:
        x[::7] = float("nan")
    found = facts_of(SequenceSet(holes, LONG.targets), 1, True)
    assert found.typical == 100 and 1 <= found.span < 2


@cases(case=[(dict(max_steps=10), 4, (3, 4)), (dict(max_steps=3), 4, (1, 3)), (dict(max_steps=9), 4, (3, 3)),
             (dict(max_steps=10, limit_batches=2), 4, (5, 2)), (dict(max_epochs=7), 4, (7, None)),
             (dict(max_epochs=7, limit_batches=2), 4, (7, 2))])
def test_steps_become_as_few_passes_as_hold_them(case):
    given, batches, want = case
    assert passes(TrainerConfig(**given), batches) == want
    if "max_steps" in given:
        assert given["max_steps"] <= want[0] * want[1] < given["max_steps"] + want[0]


@cases(case=[("trainer.max_steps=0", "trainer.max_steps must be an integer from 1"),
             ("job.warp=-1", "job.warp must be a finite number from 0 to 3"),
             ("job.mask=1.5", "job.mask must be a finite number from 0 to 1"),
             ("job.amplitude=-1", "job.amplitude must be a finite number from 0 to 100"),
             ("data.validation_fraction=1", "data.validation_fraction must be a finite number from 0 and below 1")])
def test_settings_that_break_a_rule_are_refused_by_name(case):
    override, message = case
    with raises(ConfigError, message):
        compose_app(["data=ts", "data.train_path=x", override])


@cases(name=["warp", "mask"])
def test_steps_with_targets_are_neither_warped_nor_hidden(name, tmp_path):
    from app.jobs import run_job

    with raises(ConfigError, f"job.{name} must be 0 where each step has a target; got 0.2"):
        run_job(compose_app(["data=parity", "encoder.direction=causal", f"job.{name}=0.2"]), tmp_path)


def test_stretches_are_hidden_of_sequences_with_a_stem():
    jobs = {n: settled(some([n] * 40))[0].job for n in (24, 100)}
    assert {n: (job.mask, job.learning_rate) for n, job in jobs.items()} == {24: (0.0, 2e-3), 100: (0.3, 3e-3)}

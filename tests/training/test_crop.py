"""Random parts of training sequences, and sequences on a scale of their own."""

import math

import pytest
import torch

from app_runs import QUICK, compose_app
from cfg.validation import ConfigError
from encoders.pipeline import InputPipeline
from encoders.scaling import own_scale
from encoders.training.data.batches import collate, pack
from encoders.training.data.sequences import Sample
from encoders.training.loop.crop import crop
from encoders.training.loop.mask import mask
from encoders.training.loop.warp import warp
from myfla.testing import cases, raises


def batch_of(lengths, form):
    """Channel 0 tells the sequence, channel 1 the step."""
    samples = [Sample(torch.stack([torch.full((n,), float(i)), torch.arange(float(n))], 1), torch.tensor(i))
               for i, n in enumerate(lengths)]
    return form(samples)


def parts_of(batch):
    if batch.cu_seqlens is None:
        return [x[:n] for x, n in zip(batch.x, batch.lengths.tolist())]
    assert batch.cu_seqlens.diff().tolist() == batch.lengths.tolist()
    return list(batch.x[0].split(batch.lengths.tolist()))


@cases(form=[collate, pack], share=[0.0, 0.25, 0.9])
def test_a_crop_is_a_contiguous_part_of_the_same_sequence(form, share):
    lengths = [100, 40, 17, 16, 3, 1]
    for _ in range(30):
        cut = crop(batch_of(lengths, form), share)
        assert cut.targets.tolist() == list(range(6)) and int(cut.lengths.max()) == max(len(p) for p in parts_of(cut))
        for i, (part, n) in enumerate(zip(parts_of(cut), lengths)):
            assert min(n, max(16, math.ceil(n * (1 - share)))) <= len(part) <= n
            assert (part[:, 0] == i).all() and (part[:, 1].diff() == 1).all()
            assert part[0, 1] >= 0 and part[-1, 1] < n


def test_every_place_and_length_comes_up():
    seen = {(len(p), int(p[0, 1])) for _ in range(600) for p in parts_of(crop(batch_of([20], collate), 0.2))}
    assert seen == {(n, start) for n in range(16, 21) for start in range(21 - n)}


def test_own_scale_is_invariant_to_scale_and_offset_but_remembers_the_scale():
    x = torch.randn(50, 2)
    a, b = own_scale(x), own_scale(1000 * x + 7)
    assert torch.allclose(a[:, :2], b[:, :2], atol=1e-4) and torch.allclose(b[:, 2:] - a[:, 2:], torch.ones(50, 2))
    assert torch.allclose(a[:, :2].mean(0), torch.zeros(2), atol=1e-6)


def test_own_scale_leaves_missing_values_missing_and_constant_channels_finite():
    x = torch.tensor([[1.0, 5.0], [float("nan"), 5.0], [3.0, 5.0]])
    scaled = own_scale(x)
    assert scaled[:, 0].isnan().tolist() == [False, True, False] and scaled[0, 0] == -1
    assert scaled[:, 1].tolist() == [0, 0, 0] and torch.allclose(scaled[:, 3], torch.full((3,), -2.0))


def test_a_pipeline_on_their_own_scale_measures_what_comes_of_it():
    sequences = [torch.randn(n, 3, dtype=torch.float64) for n in (4, 2, 5)]
    pipeline = InputPipeline.fit(sequences, own_scale=True)
    scaled = torch.cat([own_scale(x) for x in sequences])
    assert pipeline.width == 6 and torch.allclose(torch.tensor(pipeline.mean).double(), scaled.mean(0), atol=1e-7)
    want = (own_scale(sequences[2]) - scaled.mean(0)) / scaled.std(0, unbiased=False)
    assert torch.allclose(pipeline.transform(sequences[2]), want.float(), atol=1e-6)


@cases(case=[
    (["data=parity", "encoder.direction=causal", "job.crop=0.5"],
     "job.crop must be 0 where each step has a target; got 0.5"),
    (["data.own_scale=true", "job.objective=next_step", "encoder.direction=causal"],
     "data.own_scale must be false with job.objective=next_step"),
])
def test_settings_that_do_not_fit_are_refused_by_name(tmp_path, case):
    from app.jobs import run_job

    overrides, message = case
    with raises(ConfigError, message):
        run_job(compose_app([*QUICK, *overrides]), tmp_path)


def test_a_run_on_its_own_scale_trains_and_is_read_again_but_cannot_stream(tmp_path):
    from app.errors import RunError
    from app.jobs import run_job
    from app.streaming.model import load_model

    settings = [*QUICK, "data.own_scale=true", "job.crop=0.5", "encoder.direction=causal", "trainer.progress=false"]
    run_job(compose_app(settings), tmp_path)
    with pytest.raises(RunError, match=r"got data.own_scale=true: the scale of a sequence is known at its end"):
        load_model(tmp_path, "embedding")


@cases(form=[collate, pack], most=[0.0, 0.3, 1.0])
def test_a_warped_sequence_is_the_same_way_at_another_pace(form, most):
    lengths = [100, 40, 17, 5, 3, 1]
    for _ in range(20):
        got = warp(batch_of(lengths, form), most)
        assert got.targets.tolist() == list(range(6))
        for i, (part, n) in enumerate(zip(parts_of(got), lengths)):
            if n < 4:
                assert len(part) == n
            assert max(min(n, 4), n * math.exp(-most) - 0.51) <= len(part) <= n * math.exp(most) + 0.51
            even = torch.linspace(0, n - 1, len(part))
            assert torch.allclose(part[:, 1], even, atol=1e-4) and (part[:, 0] == i).all()


def test_warping_reads_between_steps_and_never_beyond_a_sequence():
    x = torch.tensor([[0.0, 2.0, 8.0, 0.0, 4.0, 1e9, 1e9, 1e9]]).T[None]
    batch = collate([Sample(x[0], torch.tensor(0))])._replace(lengths=torch.tensor([5]))
    lengths = set()
    for _ in range(50):
        got = warp(batch, 0.5)
        lengths.add(int(got.lengths))
        places = torch.linspace(0, 4, int(got.lengths), dtype=torch.float64)
        low = places.floor().long().clamp(max=3)
        want = torch.lerp(x[0, low, 0].double(), x[0, low + 1, 0].double(), places - low)
        assert torch.allclose(got.x[0, : int(got.lengths), 0].double(), want, atol=1e-5)
    assert len(lengths) > 3


@cases(form=[collate, pack], most=[0.0, 0.3, 1.0])
def test_one_stretch_of_each_sequence_is_hidden_and_nothing_else(form, most):
    lengths, shares = [100, 40, 17, 3, 1], []
    batch = form([Sample(torch.full((n, 2), float(i + 1)), torch.tensor(i)) for i, n in enumerate(lengths)])
    for _ in range(200):
        got = batch._replace(x=mask(batch, most))
        for i, (part, n) in enumerate(zip(parts_of(got), lengths)):
            gone = (part == 0).all(1)
            places = gone.nonzero().flatten()
            assert len(part) == n and (part[~gone] == i + 1).all() and len(places) <= n * most + 1e-9
            assert not len(places) or places[-1] - places[0] + 1 == len(places), "in one piece"
        shares.append(float((parts_of(got)[0] == 0).float().mean()))
    assert abs(sum(shares) / len(shares) - most / 2) <= 0.1 * most
    assert most == 0 or (max(shares) > 0.9 * most and min(shares) < 0.1 * most)

"""Tasks: losses, figures and predictions are those of their definitions, whatever the layout."""

import pytest
import torch
import torch.nn.functional as F

from cfg.validation import ConfigError
from encoders.training.data.batches import collate, pack
from encoders.training.data.sequences import IGNORE, Sample, SequenceData, SequenceSet
from encoders.training.loop.learner import class_weights
from encoders.training.tasks.pieces import encode_in_pieces
from encoders.training.tasks.predict import evaluate
from encoders.training.tasks.scores import Scores
from encoders.training.tasks.spec import TaskSpec, task_spec
from encoders.training.tasks.task import build_task
from myfla.testing import cases
from small_encoders import small

CLASSES = TaskSpec("classify", "classes", 3, True, ["a", "b", "c"])
VALUES = TaskSpec("regress", "values", 2, True, ["x", "y"])


def samples(spec, lengths=(4, 1, 6)):
    draw = torch.Generator().manual_seed(1)
    found = []
    for length in lengths:
        x = torch.randn(length, 3, generator=draw)
        if spec is CLASSES:
            target = torch.randint(3, (length,), generator=draw)
            target[length // 2 :: 3] = IGNORE
        else:
            target = torch.randn(length, 2, generator=draw)
            target[length // 2 :: 3, 0] = float("nan")
        found.append(Sample(x, target))
    return found


@cases(spec=[CLASSES, VALUES])
def test_loss_and_figures_are_those_of_the_targets_alone_padded_or_packed(spec):
    torch.manual_seed(0)
    encoder, task = small("gated_deltanet", torch.float32), build_task(spec, 8)
    items = samples(spec)
    if spec is VALUES:
        task.measure(torch.cat([item.target for item in items]))
    with torch.no_grad():
        outputs = torch.cat([task(encoder(item.x[None]))[0] for item in items])
    targets = torch.cat([item.target for item in items])
    known = task.has_target(targets)
    if spec is CLASSES:
        want = F.cross_entropy(outputs[known], targets[known])
    else:
        scaled = (targets[known] - task.target_mean) / task.target_std
        want = (outputs[known] - scaled.float()).square().mean()
    for join in (collate, pack):
        batch = join(items, per_step=True)
        with torch.no_grad():
            loss, weight = task.loss(task(batch.encode(encoder)), batch.targets)
        torch.testing.assert_close(loss, want)
        assert float(weight) == float(known.sum())
        found = evaluate(encoder, task, [batch])
        assert found.figures["loss"] == pytest.approx(float(want), rel=1e-5)
        assert found.prediction.lengths.tolist() == [4, 1, 6] and len(found.prediction.targets) == 11
        if spec is VALUES:
            values = outputs[known] * task.target_std + task.target_mean
            gap = values - targets[known]
            assert found.figures["rmse"] == pytest.approx(float(gap.square().mean().sqrt()), rel=1e-5)
            assert found.figures["mae"] == pytest.approx(float(gap.abs().mean()), rel=1e-5)
        else:
            right = outputs.argmax(-1) == targets
            assert found.figures["accuracy"] == pytest.approx(float(right[known].float().mean()))
            rows = [range(0, 4), range(4, 5), range(5, 11)]
            scored = [[bool(right[i]) for i in row if known[i]] for row in rows]
            scored = [row for row in scored if row]
            assert found.figures["sequence_accuracy"] == pytest.approx(sum(map(all, scored)) / len(scored))
            assert found.figures["last_accuracy"] == pytest.approx(sum(row[-1] for row in scored) / len(scored))


@cases(spec=[CLASSES, VALUES])
def test_batches_count_by_their_targets(spec):
    torch.manual_seed(0)
    encoder, task, items = small("gated_deltanet", torch.float32), build_task(spec, 8), samples(spec)
    one, several = Scores(task, full=True), Scores(task, full=True)
    with torch.no_grad():
        whole = collate(items, per_step=True)
        one.update(task(whole.encode(encoder)), whole)
        nothing = torch.full_like(items[0].target, IGNORE if spec is CLASSES else torch.nan)
        for item in [*items, Sample(items[0].x, nothing)]:
            batch = collate([item], per_step=True)
            several.update(task(batch.encode(encoder)), batch)
    assert several.compute() == pytest.approx(one.compute(), rel=1e-5)
    several.reset()
    assert several.compute() == {}


def test_class_weights_make_every_class_count_the_same():
    targets = torch.tensor([0, 0, 0, 2, IGNORE])
    weights = class_weights(targets, 3)
    torch.testing.assert_close(weights, torch.tensor([2 / 3, 1.0, 2.0]))
    task = build_task(TaskSpec("classify", "classes", 3, False, ["a", "b", "c"]), 8)
    outputs = torch.randn(5, 3)
    each = F.cross_entropy(outputs[:4], targets[:4], reduction="none")
    loss, weight = task.loss(outputs, targets, class_weight=weights)
    torch.testing.assert_close(loss, (each[:3].mean() + each[3]) / 2)
    assert float(weight) == pytest.approx(4.0)


@cases(name=["gated_deltanet", "rwkv7"], pieces=[1, 3, 4, 100])
def test_pieces_with_the_state_between_them_are_the_whole(name, pieces):
    encoder = small(name)
    batch = collate([Sample(torch.randn(n, 3, dtype=torch.float64), torch.tensor(0)) for n in (7, 2, 9)])
    with torch.no_grad():
        want, got = batch.encode(encoder), encode_in_pieces(encoder, batch, pieces)
        torch.testing.assert_close(got.hidden, want.hidden)
        torch.testing.assert_close(got.embedding, want.embedding)
        alone = encode_in_pieces(encoder, batch, pieces, carry=False).hidden
        first = encoder(batch.x[2:, :pieces]).hidden
    torch.testing.assert_close(alone[2, : min(pieces, 9)], first[0])
    if pieces < 9:
        assert not torch.allclose(alone[2, pieces:], want.hidden[2, pieces:])


def data_of(**settings):
    part = SequenceSet([torch.zeros(2, 3)], torch.zeros(1))
    return SequenceData(part, part, **{"classes": None, "input_size": 3, **settings})


def test_the_objective_must_have_its_targets():
    assert task_spec("classify", data_of(classes=["a", "b"], per_step=True)).per_step
    assert task_spec("regress", data_of(target_names=["x"])).outputs == 1
    assert task_spec("next_step", data_of()) == TaskSpec("next_step", "values", 3, True)
    assert task_spec("next_step", data_of(input_size=None, vocab_size=9)) == TaskSpec("next_step", "classes", 9, True)
    with pytest.raises(ConfigError, match=r"job.objective must be regress for data without classes; got 'classify'"):
        task_spec("classify", data_of(target_names=["x"]))
    with pytest.raises(ConfigError, match=r"job.objective must be next_step for data without classes"):
        task_spec("classify", data_of())
    with pytest.raises(ConfigError, match=r"job.objective must be classify for targets that are not numbers"):
        task_spec("regress", data_of(classes=["a", "b"]))

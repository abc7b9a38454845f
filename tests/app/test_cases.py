"""The report's facts on the data, the classes and the worst cases."""

import csv
import json

import numpy as np
import pytest
import torch

from app.cases import class_scores, worst_cases
from app.data_summary import summarise
from app.jobs import run_job
from app.loss_note import loss_note
from app.pictures import history_pictures, quality_pictures
from app.plots.effects import effect_figure
from app.sweep.groups import Group, tied
from app_runs import QUICK, compose_app
from encoders.training.data.identity import Identity
from encoders.training.data.sequences import SequenceSet
from encoders.training.tasks.predict import Evaluation, Prediction
from encoders.training.tasks.spec import TaskSpec
from myfla.testing import cases

CLASSES = TaskSpec("classify", "classes", 3, False, ["a", "b", "c"])
STEPS = TaskSpec("classify", "classes", 3, True, ["a", "b", "c"])
VALUES = TaskSpec("regress", "values", 2, False, ["x", "y"])


def prediction(spec, seed=0, count=40):
    made = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 6, (count,), generator=made)
    size = int(lengths.sum()) if spec.per_step else count
    if spec.kind == "classes":
        truth, said = (torch.randint(0, 3, (size,), generator=made) for _ in range(2))
        truth[::7] = -100
        columns = {"predicted": said, "probability": torch.rand(size, generator=made)}
    else:
        truth = torch.randn(size, 2, generator=made)
        truth[::7] = float("nan")
        columns = {"value": torch.randn(size, 2, generator=made)}
    return Prediction(torch.zeros(count, 2), lengths, columns, truth)


def test_scores_of_a_class_are_recall_and_precision():
    one = prediction(CLASSES)
    known = one.targets >= 0
    truth, said = one.targets[known].numpy(), one.columns["predicted"][known].numpy()
    matrix = [[int(((truth == i) & (said == j)).sum()) for j in range(3)] for i in range(3)]
    found = {score.name: score for score in class_scores(matrix, CLASSES.names)}
    for i, name in enumerate(CLASSES.names):
        recall, precision = (said[truth == i] == i).mean(), (truth[said == i] == i).mean()
        assert found[name].size == (truth == i).sum() and found[name].recall == pytest.approx(recall)
        assert found[name].f1 == pytest.approx(2 * recall * precision / (recall + precision))
    assert [score.f1 for score in found.values()] == sorted(score.f1 for score in found.values())
    assert class_scores([[0, 0], [0, 4]], ["never", "ever"])[0].name == "ever", "what is not there has no score"


@cases(spec=[CLASSES, STEPS, VALUES])
def test_the_worst_come_first_with_their_ids(spec):
    one = prediction(spec)
    columns, rows = worst_cases(spec, one, Identity(range(40), [f"s{i}" for i in range(40)]))
    assert columns[:2] == ["sequence", "id"] and 0 < len(rows) <= 10 and rows[0][1] == f"s{rows[0][0]}"
    if spec is CLASSES:
        wrong = (one.targets >= 0) & (one.targets != one.columns["predicted"])
        best = one.columns["probability"][wrong].sort(descending=True).values[:10]
        assert [row[-1] for row in rows] == [f"{float(value):.1%}" for value in best]
        assert all(row[2] != row[3] for row in rows)
    elif spec is STEPS:
        shares = []
        parts = (x.split(one.lengths.tolist()) for x in (one.targets, one.columns["predicted"]))
        for truth, said in zip(*parts):
            shares.append(float((truth == said)[truth >= 0].double().mean()))
        wanted = sorted(share for share in shares if share < 1)[:10]
        assert [row[-1] for row in rows] == [f"{share:.1%}" for share in wanted]
    else:
        known = ~one.targets.isnan().any(1)
        spread = one.targets[known].double().std(0, unbiased=False)
        missed = ((one.columns["value"] - one.targets).double() / spread).abs()
        assert float(rows[0][-1]) == pytest.approx(float(missed[known].amax()), rel=1e-2)


def test_what_is_missing_and_how_long_it_is():
    x = [torch.zeros(length, 2) for length in (2, 5, 9)]
    x[1][2, 0] = float("nan")
    data = SequenceSet(x, torch.tensor([0, 2, 2]))
    found = summarise({"training": data, "validation": None}, CLASSES)
    assert found == {"training": {"sequences": 3, "steps": 16, "shortest": 2, "median": 5.0, "longest": 9,
                                  "missing": 1 / 32, "classes": {"a": 1, "b": 0, "c": 2}}}


def test_a_training_loss_above_the_validation_loss_is_explained():
    config = compose_app(["job.label_smoothing=0.1", "encoder.dropout=0.2", "encoder.drop_path=0.5", "job.noise=0",
                          "job.offset=0.3"])
    note = loss_note(config, {"train_loss": 1.0, "val_loss": 0.5})
    for part in ("label smoothing 0.1", "dropout 0.2", "skipped layers (drop_path 0.5)", "random shifts (offset 0.3)",
                 "during which the weights change"):
        assert part in note
    assert "noise" not in note and loss_note(config, {"train_loss": 0.4, "val_loss": 0.5}) == ""
    assert loss_note(config, {"train_loss": 0.4}) == ""


@cases(name=["val_accuracy", "val_rmse"])
def test_axes_show_no_impossible_values(name):
    rows = [{"epoch": i, "train_loss": 0.01, "val_loss": 0.02, name: 1.0 - 0.001 * (i % 2) if name == "val_accuracy"
             else 0.001 * i, "learning_rate": 0.0} for i in range(5)]
    loss, rate = history_pictures(rows, 2)
    assert ("Accuracy" if name == "val_accuracy" else "RMSE") in rate.title
    for axes in (*loss.figure.axes, rate.figure.axes[0]):
        ticks = list(axes.get_yticks())
        assert min(ticks) >= 0 and (name != "val_accuracy" or axes is loss.figure.axes[0] or max(ticks) <= 100)
        assert axes.get_ylim()[0] > -1.0


def test_next_tokens_are_judged_by_their_perplexity():
    spec = TaskSpec("next_step", "classes", 50, True)
    rows = [{"epoch": i, "val_loss": float(i), "val_accuracy": 0.1, "learning_rate": 0.1} for i in (1, 2)]
    rate = history_pictures(rows, 1, tokens=True)[1]
    assert rate.title == "Perplexity and learning rate"
    assert rate.figure.axes[0].lines[0].get_ydata() == pytest.approx(np.exp([1.0, 2.0]))
    one = prediction(STEPS)
    same = Prediction(one.embeddings, torch.full((40,), 3), {k: v[:120] for k, v in one.columns.items()},
                      one.targets[:120])
    pictures = quality_pictures(spec, Evaluation(same._replace(
        columns={k: torch.cat([v, v])[:120] for k, v in same.columns.items()},
        targets=torch.cat([one.targets, one.targets])[:120]), {}, None, 1.0))
    assert [picture.name for picture in pictures] == ["places"]


def test_seeds_tell_groups_apart_or_do_not():
    def group(mean, spread, count):
        return Group({}, [{}] * count, [], {"val_loss": (mean, spread)})

    best = group(1.0, 0.1, 4)
    assert tied(best, group(1.1, 0.1, 4), "val_loss") and not tied(best, group(1.3, 0.1, 4), "val_loss")
    assert not tied(best, group(1.0, None, 1), "val_loss") and not tied(best, group(1.0, 0.1, 4), "other")


@cases(values=[["a", "b", "a", "b"], ["1", "2", "1", "2"]])
def test_only_numbers_have_a_line_between_their_means(values):
    figure = effect_figure("x", values, [("test accuracy", [99.0, 100.0, 100.0, 100.0])])
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 2 and line.get_linewidth() < 1]
    assert len(lines) == (1 if values[0] == "1" else 0)
    assert max(figure.axes[0].get_yticks()) <= 100


def test_a_report_shows_all_of_it(tmp_path):
    run_job(compose_app([*QUICK, "job.refit=false", "trainer.max_epochs=1"]), tmp_path)
    page, found = (tmp_path / "report.html").read_text(), json.loads((tmp_path / "metrics.json").read_text())
    for part in ("Worst cases", "Each class, the worst first", "missing values", "Each of the 9 classes"):
        assert part in page, part
    assert found["data_summary"]["test"]["sequences"] == 370 and list(found["data_summary"]) == [
        "training", "validation", "test"]
    with open(tmp_path / "predictions.csv", newline="") as file:
        wrong = [row for row in csv.DictReader(file) if row["label"] != row["predicted"]]
    worst = max(wrong, key=lambda row: float(row["probability"]))
    assert f'<td class="txt" data-label="sequence">{worst["sequence"]}</td>' in page

"""Pages and pictures: one file, nothing loaded, hostile names shown as they are, no numbers lost."""

import json
import re

import numpy as np
import pytest
import torch

from app.figures import shown_figures
from app.page import html
from app.page.run_page import repeat_command, write_run_page
from app.pictures import history_pictures, memory_pictures, quality_pictures
from app.plots.style import to_svg
from app.projection import principal_plane
from app.remember import LONGEST, half_life, measure_memory
from encoders import build_encoder
from encoders.probing import probe
from encoders.training.tasks.predict import Evaluation, Prediction
from encoders.training.tasks.spec import TaskSpec
from myfla.testing import cases
from pages import HOSTILE, Page, assert_nothing_is_loaded


def results(**more):
    return {"encoder": "gated_deltanet", "data": "ts", "encoder_parameters": 1234, "test_loss": 0.5,
            "test_accuracy": 0.75, "seed": 3, "overrides": ["encoder=rwkv7"], **more}


def classified(names, per_step=False):
    count = 6 * len(names)
    truth = torch.arange(count) % len(names)
    said = torch.where(torch.arange(count) % 5 == 0, (truth + 1) % len(names), truth)
    matrix = torch.zeros(len(names), len(names), dtype=torch.long)
    for true, guess in zip(truth.tolist(), said.tolist()):
        matrix[true, guess] += 1
    lengths = torch.tensor([2, count - 2]) if per_step else torch.arange(count) + 1
    columns = {"predicted": said, "probability": torch.full((count,), 0.5)}
    prediction = Prediction(torch.randn(len(lengths), 4), lengths, columns, truth)
    spec = TaskSpec("classify", "classes", len(names), per_step, list(names))
    return spec, Evaluation(prediction, {"accuracy": 0.8}, matrix.tolist(), 1.0)


def valued(count=40, outputs=2):
    truth = torch.randn(count, outputs)
    truth[3, 0] = float("nan")
    prediction = Prediction(torch.randn(count, 4), torch.full((count,), 9), {"value": truth.nan_to_num() + 0.1}, truth)
    names = [f"<b>{i}" for i in range(outputs)]
    return TaskSpec("regress", "values", outputs, False, names), Evaluation(prediction, {"rmse": 0.1}, None, 1.0)


HISTORY = [{"stage": "fit", "epoch": i, "train_loss": 2.0 ** -i, "val_loss": 1.1 * 2.0 ** -i, "val_accuracy": i / 9,
            "learning_rate": 0.002} for i in range(1, 9)]


def test_a_page_with_hostile_names_shows_them_and_loads_nothing(tmp_path):
    spec, test = classified(HOSTILE)
    groups = [("Training", "", history_pictures(HISTORY, 3)), ("Test", "<i>", quality_pictures(spec, test))]
    found = results(encoder=HOSTILE[0], data=HOSTILE[3], overrides=[f"data.train_path={name}" for name in HOSTILE])
    path = write_run_page(tmp_path, found, f"name: {HOSTILE[0]}\n", groups)
    page = assert_nothing_is_loaded(path.read_text(encoding="utf-8"))
    shown = " ".join(page.texts)
    for name in (HOSTILE[0], HOSTILE[1], HOSTILE[2], HOSTILE[3], HOSTILE[4]):
        assert name in shown, name
    assert "img" not in page.tags and page.tags.count("svg") == 4
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_pages_close_what_they_open_and_escape_what_they_are_given():
    made = html.join(html.section("a<b", html.table(["x&y"], [["<td>", None, ][:1]]), note="'\""),
                     html.cards([("<", ">")]), html.legend([('red"', "<", ">")]), html.code("</pre>"), None)
    page = Page(f"<main>{made}</main>")
    assert {"a<b", "x&y", "<td>", "</pre>"} <= set(page.texts) and ("style", 'color:red"') in page.attributes
    text = html.page("<t>", "lead & more", made, "text <")
    assert text.startswith("<!doctype html>") and "<title>&lt;t&gt;</title>" in text and "text &lt;" in text
    assert "Content-Security-Policy" in text and "prefers-color-scheme: dark" in text and "viewport" in text
    assert_nothing_is_loaded(text)


def test_pictures_take_the_colours_of_the_page_and_keep_their_text():
    spec, test = classified(["first", "second", "third"])
    for picture in [*history_pictures(HISTORY, 3), *quality_pictures(spec, test)]:
        svg = to_svg(picture.figure, picture.name, picture.title)
        assert svg.startswith("<svg") and "var(--ink)" in svg and f"<title>{picture.title}</title>" in svg
        assert not re.search(r'\s(width|height)="[0-9.]+pt"', svg) and "http" not in svg
        assert all(match.startswith(f"{picture.name}-") for match in re.findall(r'id="([^"]*)"', svg))
    confusion = to_svg(quality_pictures(spec, test)[0].figure, "c", "c")
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", confusion)
    counts = [str(count) for row in test.confusion for count in row if count]
    assert sorted(counts) == sorted(text for text in texts if text.isdigit()) and "second" in texts


def test_no_epoch_is_said_to_be_chosen_where_nothing_was_held_out():
    alone = [{key: value for key, value in row.items() if not key.startswith("val_")} for row in HISTORY]
    for rows, chosen in ((HISTORY, True), (alone, False)):
        loss = history_pictures(rows, 3)[0]
        assert ("is chosen" in loss.caption) == ("chosen epoch, 3" in to_svg(loss.figure, "l", "l")) == chosen


def test_the_same_figures_give_the_same_picture():
    spec, test = classified(["a", "b"])
    first, again = (to_svg(quality_pictures(spec, test)[1].figure, "x", "x") for _ in range(2))
    assert first == again


@cases(outputs=[1, 6])
def test_values_have_residuals_and_missing_ones_are_left_out(outputs):
    spec, test = valued(outputs=outputs)
    pictures = quality_pictures(spec, test)
    assert [picture.name for picture in pictures] == ["residuals", "embeddings"]
    assert "39 of them" in pictures[0].caption and ("first 4 of 6" in pictures[0].caption) == (outputs == 6)
    assert "&lt;b&gt;0" in to_svg(pictures[0].figure, "r", "r")


@cases(classes=[1, 21, 45])
def test_any_number_of_classes_is_drawn(classes):
    spec, test = classified([f"class {i}" for i in range(classes)])
    confusion, embeddings = quality_pictures(spec, test)
    assert len(embeddings.legend) == (classes if classes <= 20 else 0)
    assert "<svg" in to_svg(confusion.figure, "a", "a") and "<svg" in to_svg(embeddings.figure, "b", "b")


def test_steps_are_coloured_by_length_and_one_epoch_is_enough():
    spec, test = classified(["a", "b"], per_step=True)
    assert [picture.name for picture in quality_pictures(spec, test)] == ["confusion", "places", "embeddings"]
    assert "coloured by length" in quality_pictures(spec, test)[2].caption
    for picture in history_pictures([{"epoch": 1, "train_loss": 0.0, "learning_rate": 0.0}], None):
        assert "<svg" in to_svg(picture.figure, "x", "x")


def test_the_plane_keeps_the_largest_variance():
    x = torch.randn(50, 5, dtype=torch.float64) @ torch.diag(torch.tensor([5.0, 3.0, 0.1, 0.1, 0.1]).double())
    points, shares = principal_plane(x)
    centred = x - x.mean(0)
    values = torch.linalg.svdvals(centred).square()
    assert shares == pytest.approx((values[:2] / values.sum()).tolist(), rel=1e-9)
    assert points.square().sum(0).tolist() == pytest.approx(values[:2].tolist(), rel=1e-9)
    for shape in ((1, 3), (4, 1), (3, 2)):
        points, shares = principal_plane(torch.ones(shape))
        assert points.shape == (shape[0], 2) and not points.any() and shares == [0.0, 0.0]


def test_the_command_is_safe_to_paste():
    command = repeat_command(["encoder=rwkv7", "data.train_path=my file;rm -rf"])
    assert command == "python -m app encoder=rwkv7 'data.train_path=my file;rm -rf'"


def test_figures_are_shown_in_their_units():
    found = results(test_longer_loss=1, test_longer_accuracy=0.5, val_loss=0.1, val_rmse=0.25, train_loss=3)
    assert shown_figures(found) == [("test accuracy", "75.00%"), ("test longer accuracy", "50.00%"),
                                    ("validation RMSE", "0.25")]


@cases(name=["gated_deltanet", "rwkv7"])
def test_memory_is_counted_over_all_tokens_of_all_batches(name):
    encoder = build_encoder({"name": name, "input_size": 3, "hidden_size": 16, "num_layers": 2,
                             "direction": "bidirectional"}, dtype=torch.float64)
    batches = [(torch.randn(4, 50, 3, dtype=torch.float64), torch.tensor([50, 3, 20, 1]), None) for _ in range(3)]
    memory = measure_memory(encoder, batches)
    assert memory["tokens"] == 3 * 74 and len(memory["layers"]) == 4
    assert [(layer["layer"], layer["backward"]) for layer in memory["layers"]] == [
        (0, False), (0, True), (1, False), (1, True)]
    found = [probe(encoder, x, lengths=lengths) for x, lengths, _ in batches]
    for layer in memory["layers"]:
        place = [(g.layer, g.backward) for g in found[0]].index((layer["layer"], layer["backward"]))
        decay = torch.cat([batch[place].gates.log_decay for batch in found])
        strength = torch.cat([batch[place].gates.strength for batch in found])
        for h, head in enumerate(layer["heads"]):
            lives = half_life(decay[:, h].mean(0))
            assert head["channels"] == pytest.approx(lives.tolist(), rel=1e-5)
            assert head["strength"] == pytest.approx(float(strength[:, h].mean()), rel=1e-5)
            assert sum(head["strength_histogram"]) == decay[:, h].numel()
            want = np.quantile(half_life(decay[:, h]).flatten().numpy(), memory["quantiles"], method="inverted_cdf")
            assert head["quantiles"] == pytest.approx(want.tolist(), rel=0.01), "bins are 1.2 % wide"
    json.dumps(memory, allow_nan=False)
    for picture in memory_pictures(memory, batches[0][1]):
        assert "<svg" in to_svg(picture.figure, picture.name, picture.title)


def test_what_never_decays_is_kept_and_the_budget_ends_the_reading():
    assert half_life(torch.zeros(1)).tolist() == [LONGEST]
    assert half_life(torch.tensor([-1e9]).double()).tolist() == [0.01]
    encoder = build_encoder({"name": "gated_deltanet", "input_size": 3, "hidden_size": 8, "num_layers": 1})
    read = []

    def batches():
        for i in range(9):
            read.append(i)
            yield torch.randn(2, 10, 3), None, None

    assert measure_memory(encoder, batches(), most_tokens=30)["tokens"] == 40 and read == [0, 1]
    assert measure_memory(encoder, []) is None

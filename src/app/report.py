"""The results that a run writes and shows at its end."""

import csv
import logging
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Optional, Tuple

import torch

from app.baselines.measure import FIGURE, better
from app.cases import class_scores, worst_cases
from app.figures import FIGURES, shown_epochs, shown_figures
from app.page.run_page import write_run_page
from app.page.run_tables import cases_section, classes_table
from app.pictures import Picture, history_pictures, memory_pictures, quality_pictures
from app.plots.style import save_png
from app.remember import measure_memory
from app.run_folder import RESULTS, relative, whole_file, write_json
from app.tables import console, say
from encoders.stack import Encoder
from encoders.training.data.batches import Batch
from encoders.training.data.identity import Identity
from encoders.training.loop.fit import Fit
from encoders.training.tasks.predict import Evaluation, Prediction, to_device
from encoders.training.tasks.spec import TaskSpec
from myfla.models.sealed_file import write_sealed

__all__ = ["MEMORY", "say_baselines", "show_results", "write_predictions", "write_results"]

log = logging.getLogger(__name__)

MEMORY = "memory.json"


def write_results(
    folder: Path, results: Mapping[str, Any], encoder: Encoder, task: TaskSpec, test: Evaluation,
    batches: Iterable[Batch], ids: Identity, chosen: Optional[Fit] = None, training_note: str = "",
) -> None:
    """Write the results on a test set, with pictures and a page, and the figures last.

    - ``predictions.csv``: true and predicted class of every test sequence (or step) with the probability, or true and
    predicted values; with the id and file of the sequence - ``embeddings.safetensors``: ``embeddings``, ``lengths`` and
    ``targets`` of the test sequences, in order - ``memory.json``: see `app.remember.measure_memory` - the pictures as
    PNG, and all of it on one page, ``report.html`` - ``metrics.json``, last: a folder with it is a run that succeeded

    Args:
        folder: with ``config.yaml``.
        results: figures and facts.
        encoder: that made the predictions.
        task: of the run.
        test: of the first test set.
        batches: of the same, for the layers' memory.
        ids: of its sequences.
        chosen: the training, where there was one.
        training_note: a remark on its losses, or "".
    """
    prediction = test.prediction
    tensors = {"embeddings": prediction.embeddings, "lengths": prediction.lengths, "targets": prediction.targets}
    write_sealed(folder / "embeddings.safetensors", "myfla.embeddings", tensors, {"task": task.facts()})
    write_predictions(folder / "predictions.csv", task, prediction, ids)
    memory = _memory(encoder, batches)
    if memory is not None:
        write_json(memory, folder / MEMORY)
    groups = _groups(task, test, memory, chosen, training_note)
    for _, _, pictures in groups:
        for picture in pictures:
            save_png(picture.figure, folder / f"{picture.name}.png")
    config = (folder / "config.yaml").read_text(encoding="utf-8")
    scores = [] if test.confusion is None or task.names is None else class_scores(test.confusion, task.names)
    cases = cases_section(*worst_cases(task, prediction, ids), classes_table(scores))
    write_run_page(folder, results, config, groups, [cases])
    write_json(dict(results), folder / RESULTS)


def _memory(encoder: Encoder, batches: Iterable[Batch]) -> Optional[Dict[str, Any]]:
    place = next(encoder.parameters())

    def given() -> Iterator[Tuple[Any, Any, Any]]:
        for batch in batches:
            batch = to_device(batch, place)
            yield batch.x, None if batch.cu_seqlens is not None else batch.lengths, batch.cu_seqlens

    return measure_memory(encoder, given())


def _groups(
    task: TaskSpec, test: Evaluation, memory: Optional[Dict[str, Any]], chosen: Optional[Fit],
    training_note: str,
) -> List[Tuple[str, str, List[Picture]]]:
    """Sections of the page: title, what they show, pictures."""
    tokens = task.shifts and task.kind == "classes"
    groups: List[Tuple[str, str, List[Picture]]] = []
    if chosen is not None:
        groups.append(("Training", training_note, history_pictures(chosen.rows, chosen.epoch, tokens)))
    groups.append(("Test", "", quality_pictures(task, test)))
    if memory is not None:
        note = f"Measured on {memory['tokens']:,} steps of the test set, head by head."
        groups.append(("What the layers remember", note, memory_pictures(memory, test.prediction.lengths)))
    return groups


def write_predictions(path: Path, task: TaskSpec, prediction: Prediction, ids: Identity) -> None:
    """One row for each target: of a sequence, or of a step. Steps without a target have no row."""
    with whole_file(path) as file:
        writer = csv.writer(file)
        places = [*ids.columns, "step"] if task.per_step else ids.columns
        if task.kind == "classes":
            writer.writerow([*places, "label", "predicted", "probability"])
            _, predicted, probability = (t.tolist() for t in (prediction.targets, *prediction.columns.values()))
            for place, i, label in _places(task, prediction, ids):
                writer.writerow([*place, task.name(label), task.name(predicted[i]), f"{probability[i]:.6f}"])
            return
        names = [task.name(i) for i in range(task.outputs)]
        writer.writerow([*places, *names, *(f"predicted {name}" for name in names)])
        values = prediction.columns["value"].tolist()
        for place, i, target in _places(task, prediction, ids):
            writer.writerow([*place, *target, *(f"{value:.8g}" for value in values[i])])


def _places(task: TaskSpec, prediction: Prediction, ids: Identity) -> Iterator[Any]:
    """``(identity and step, row, target)`` of everything that has a target."""
    targets = prediction.targets
    known = targets >= 0 if task.kind == "classes" else ~targets.isnan().any(-1)
    if task.per_step:
        rows = torch.repeat_interleave(torch.arange(len(prediction.lengths)), prediction.lengths)
        starts = (prediction.lengths.cumsum(0) - prediction.lengths)[rows]
        steps = (torch.arange(len(rows)) - starts).tolist()
        places: List[Any] = [[*ids.row(i), step] for i, step in zip(rows.tolist(), steps)]
    else:
        places = [ids.row(i) for i in range(len(targets))]
    values = targets.tolist()
    for i in known.nonzero().flatten().tolist():
        yield places[i], i, values[i]


def say_baselines(results: Mapping[str, Any], kind: str) -> None:
    """Log the results of simple methods on the same split; warn if one of them does better."""
    found = results.get("baselines")
    key, label = FIGURE[kind]
    own = results.get(f"test_{key}")
    if not found or own is None:
        return
    form = {name: form for name, _, form in FIGURES}[key]
    log.info("test %s of simple methods: %s", label, ", ".join(
        f"{name} {form.format(figures[key])}" for name, figures in found.items()))
    ahead = better(found, own, kind)
    if ahead:
        log.warning("%s does better on the test set: %s, against %s of this encoder; try more steps, another "
                    "encoder.stem, or take the simple method", ahead[0][0], form.format(ahead[0][1]), form.format(own))


def show_results(results: Mapping[str, Any], folder: Path, brief: bool = False) -> None:
    """Print the results as a table, and where the files are; ``brief`` logs one line instead."""
    figures = shown_figures(results)
    if brief:
        shown = [f"{label} {value}" for label, value in figures]
        shown += [f"validation loss {results['val_loss']:.4f}"] if "val_loss" in results else []
        log.info("%s, in %s", ", ".join(shown), relative(folder))
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    rows = list(figures)
    if "epoch" in results:
        rows.append(shown_epochs(results))
        rows.append(("training", f"{results['fit_seconds']:.1f} s, {results['train_tokens_per_s']:,.0f} tokens/s"))
    rows.append(("encoding", f"{results['encode_sequences_per_s']:,.0f} sequences/s, "
                             f"{results['encode_tokens_per_s']:,.0f} tokens/s"))
    table = Table(box=box.SIMPLE_HEAD, show_header=False)
    table.add_column(justify="left")
    table.add_column(justify="right", style="bold")
    for label, value in rows:
        table.add_row(Text(label), Text(value))
    console().print(table)
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    say(f"{relative(folder)}/")
    say("  " + "  ".join(names))

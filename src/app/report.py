"""What a training run leaves and shows at its end."""

import csv
import logging
from pathlib import Path
from typing import Any, Dict, Iterator, List

import torch

from app.plots import plot_confusion, plot_history
from app.run_folder import relative
from app.tasks.predict import Evaluation, Prediction
from app.tasks.spec import TaskSpec
from app.training.fit import Fit
from myfla.models.sealed_file import write_sealed

__all__ = ["show_results", "write_predictions", "write_results"]

log = logging.getLogger(__name__)

SHOWN = (("accuracy", "accuracy", "{:.2%}"), ("sequence_accuracy", "whole sequences right", "{:.2%}"),
         ("last_accuracy", "last steps right", "{:.2%}"), ("macro_f1", "macro-F1", "{:.2%}"),
         ("perplexity", "perplexity", "{:.3f}"), ("rmse", "RMSE", "{:.5g}"), ("mae", "MAE", "{:.5g}"),
         ("r2", "R\u00b2", "{:.4f}"))


def write_results(folder: Path, task: TaskSpec, test: Evaluation, chosen: Fit) -> None:
    """Write the predictions and the plots.

    - ``predictions.csv``: true and predicted class of every test sequence (or step), with the probability; or true and
      predicted values
    - ``embeddings.safetensors``: ``embeddings``, ``lengths`` and ``targets`` of the test sequences, in order
    - ``loss.png``; ``confusion.png`` for classes
    """
    prediction = test.prediction
    tensors = {"embeddings": prediction.embeddings, "lengths": prediction.lengths, "targets": prediction.targets}
    write_sealed(folder / "embeddings.safetensors", "myfla.embeddings", tensors, {"task": task.facts()})
    write_predictions(folder / "predictions.csv", task, prediction)
    rows = [row for row in chosen.rows if row["stage"] == "fit"]
    plot_history(rows, chosen.epoch, folder / "loss.png")
    if test.confusion is not None:
        right, count = sum(row[i] for i, row in enumerate(test.confusion)), sum(map(sum, test.confusion))
        title = f"test set: {right} of {count} right"
        plot_confusion(test.confusion, task.names, title, folder / "confusion.png")


def write_predictions(path: Path, task: TaskSpec, prediction: Prediction) -> None:
    """One row for each target: of a sequence, or of a step. Steps without a target have no row."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        places = ["sequence", "step"] if task.per_step else ["sequence"]
        if task.kind == "classes":
            writer.writerow([*places, "label", "predicted", "probability"])
            _, predicted, probability = (t.tolist() for t in (prediction.targets, *prediction.columns.values()))
            for place, i, label in _places(task, prediction):
                writer.writerow([*place, task.name(label), task.name(predicted[i]), f"{probability[i]:.6f}"])
            return
        names = [task.name(i) for i in range(task.outputs)]
        writer.writerow([*places, *names, *(f"predicted {name}" for name in names)])
        values = prediction.columns["value"].tolist()
        for place, i, target in _places(task, prediction):
            writer.writerow([*place, *target, *(f"{value:.8g}" for value in values[i])])


def _places(task: TaskSpec, prediction: Prediction) -> Iterator[Any]:
    """``(sequence and step, row, target)`` of everything that has a target."""
    targets = prediction.targets
    known = targets >= 0 if task.kind == "classes" else ~targets.isnan().any(-1)
    if task.per_step:
        rows = torch.repeat_interleave(torch.arange(len(prediction.lengths)), prediction.lengths)
        starts = (prediction.lengths.cumsum(0) - prediction.lengths)[rows]
        places: List[Any] = list(zip(rows.tolist(), (torch.arange(len(rows)) - starts).tolist()))
    else:
        places = [(i,) for i in range(len(targets))]
    values = targets.tolist()
    for i in known.nonzero().flatten().tolist():
        yield places[i], i, values[i]


def show_results(results: Dict[str, Any], folder: Path, brief: bool = False) -> None:
    """Print the results as a table, and where the files are; ``brief`` logs one line instead."""
    figures = [(f"{part} {label}", form.format(results[f"{part}_{name}"])) for part in _parts(results)
               for name, label, form in SHOWN if f"{part}_{name}" in results]
    if brief:
        shown = ", ".join(f"{label} {value}" for label, value in figures)
        log.info("%s, validation loss %.4f, in %s", shown, results["val_loss"], relative(folder))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_header=False)
    table.add_column(justify="left")
    table.add_column(justify="right", style="bold")
    for label, value in figures:
        table.add_row(label.replace("val ", "validation ").replace("_", " "), value)
    table.add_row("chosen epoch", f"{results['epoch']} of {results['epochs']}")
    table.add_row("training", f"{results['fit_seconds']:.1f} s, {results['train_tokens_per_s']:,.0f} tokens/s")
    table.add_row("encoding", f"{results['encode_sequences_per_s']:,.0f} sequences/s, "
                              f"{results['encode_tokens_per_s']:,.0f} tokens/s")
    console = Console()
    console.print(table)
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    console.print(f"{relative(folder)}/", markup=False, highlight=False)
    console.print("  " + "  ".join(names), markup=False, highlight=False)


def _parts(results: Dict[str, Any]) -> List[str]:
    """``test``, further test sets, ``val``: what has a loss."""
    parts = [key[: -len("_loss")] for key in results if key.endswith("_loss") and not key.startswith("train")]
    return sorted(parts, key=lambda part: (part == "val", part != "test"))

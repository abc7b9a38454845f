"""What a training run leaves and shows at its end."""

import csv
import logging
from pathlib import Path
from typing import Any, Dict, List

import torch
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_confusion_matrix, multiclass_f1_score

from app.data.sequences import Standardizer
from app.plots import plot_confusion, plot_history
from app.run_folder import relative
from app.training.classifier import Classifier, Prediction
from app.training.fit import Fit
from myfla.models.sealed_file import write_sealed

__all__ = ["scores", "show_results", "write_results"]

log = logging.getLogger(__name__)


def scores(prediction: Prediction, classes: int) -> Dict[str, float]:
    """``test_accuracy``, ``test_macro_f1`` (the mean over classes) and ``test_loss``."""
    logits, labels = prediction.logits.float(), prediction.labels
    return {
        "test_accuracy": float(multiclass_accuracy(logits, labels, classes, average="micro")),
        "test_macro_f1": float(multiclass_f1_score(logits, labels, classes, average="macro")),
        "test_loss": float(torch.nn.functional.cross_entropy(logits, labels)),
    }


def write_results(
    folder: Path,
    module: Classifier,
    standardizer: Standardizer,
    classes: List[str],
    prediction: Prediction,
    chosen: Fit,
) -> None:
    """Write what is needed to use the classifier again, its predictions, and the plots.

    - ``classifier.safetensors``: ``head.weight``, ``head.bias``, and ``mean``, ``std`` of the input's channels, with
      the class names; read it with `myfla.models.sealed_file.read_sealed`
    - ``predictions.csv``: true and predicted class of every test sequence, with the probability
    - ``embeddings.safetensors``: ``embeddings`` and ``labels`` of the test sequences, in order
    - ``loss.png``, ``confusion.png``
    """
    head = {"head.weight": module.head.weight, "head.bias": module.head.bias,
            "mean": standardizer.mean, "std": standardizer.std}
    write_sealed(folder / "classifier.safetensors", "myfla.classifier", head, {"classes": classes})
    embeddings = {"embeddings": prediction.embeddings, "labels": prediction.labels}
    write_sealed(folder / "embeddings.safetensors", "myfla.embeddings", embeddings, {"classes": classes})
    _write_predictions(folder / "predictions.csv", prediction, classes)
    rows = [row for row in chosen.rows if row["stage"] == "fit"]
    plot_history(rows, chosen.epoch, folder / "loss.png")
    matrix = multiclass_confusion_matrix(prediction.logits.float(), prediction.labels, len(classes)).tolist()
    right = sum(matrix[i][i] for i in range(len(classes)))
    title = f"test set: {right} of {len(prediction.labels)} right"
    plot_confusion(matrix, classes, title, folder / "confusion.png")


def _write_predictions(path: Path, prediction: Prediction, classes: List[str]) -> None:
    probability, predicted = prediction.logits.float().softmax(-1).max(-1)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["sequence", "label", "predicted", "probability"])
        rows = zip(prediction.labels.tolist(), predicted.tolist(), probability.tolist())
        for index, (label, guess, share) in enumerate(rows):
            writer.writerow([index, classes[label], classes[guess], f"{share:.6f}"])


def show_results(results: Dict[str, Any], folder: Path, brief: bool = False) -> None:
    """Print the results as a table, and where the files are; ``brief`` logs one line instead."""
    if brief:
        log.info("test accuracy %.4f, macro-F1 %.4f, validation loss %.4f, in %s", results["test_accuracy"],
                 results["test_macro_f1"], results["val_loss"], relative(folder))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_header=False)
    table.add_column(justify="left")
    table.add_column(justify="right", style="bold")
    table.add_row("test accuracy", f"{100 * results['test_accuracy']:.2f} %")
    table.add_row("test macro-F1", f"{100 * results['test_macro_f1']:.2f} %")
    table.add_row("validation accuracy", f"{100 * results['val_accuracy']:.2f} %")
    table.add_row("chosen epoch", f"{results['epoch']} of {results['epochs']}")
    table.add_row("training", f"{results['fit_seconds']:.1f} s, {results['train_tokens_per_s']:,.0f} tokens/s")
    table.add_row("encoding", f"{results['encode_sequences_per_s']:,.0f} sequences/s, "
                              f"{results['encode_tokens_per_s']:,.0f} tokens/s")
    console = Console()
    console.print(table)
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    console.print(f"{relative(folder)}/", markup=False, highlight=False)
    console.print("  " + "  ".join(names), markup=False, highlight=False)

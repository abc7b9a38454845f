"""Figures of a run in words: what ``metrics.json`` calls ``test_accuracy`` is shown as "test accuracy, 98.65 %"."""

from typing import Any, List, Mapping, Tuple

__all__ = ["FIGURES", "parts_of", "shown_epochs", "shown_figures", "word"]

#: Key after the part, label, format; in the order in which they are shown.
FIGURES = (
    ("accuracy", "accuracy", "{:.2%}"),
    ("sequence_accuracy", "whole sequences right", "{:.2%}"),
    ("last_accuracy", "last steps right", "{:.2%}"),
    ("macro_f1", "macro-F1", "{:.2%}"),
    ("perplexity", "perplexity", "{:.3f}"),
    ("rmse", "RMSE", "{:.5g}"),
    ("mae", "MAE", "{:.5g}"),
    ("r2", "R\u00b2", "{:.4f}"),
)


def parts_of(results: Mapping[str, Any]) -> List[str]:
    """The sets that were evaluated: ``test``, further test sets, ``val``."""
    parts = [key[: -len("_loss")] for key in results if key.endswith("_loss") and not key.startswith("train")]
    return sorted(parts, key=lambda part: (part == "val", part != "test"))


def shown_figures(results: Mapping[str, Any]) -> List[Tuple[str, str]]:
    """``(label, value)`` of everything that was evaluated.

    Example:
        >>> shown_figures({"test_loss": 0.1, "test_accuracy": 0.9865, "val_loss": 0.2, "val_rmse": 3})
        [('test accuracy', '98.65%'), ('validation RMSE', '3')]
    """
    return [(f"{word(part)} {label}", form.format(results[f"{part}_{name}"])) for part in parts_of(results)
            for name, label, form in FIGURES if f"{part}_{name}" in results]


def shown_epochs(results: Mapping[str, Any]) -> Tuple[str, str]:
    """``(label, value)`` of the epoch of the weights, which validation has chosen if data were held out.

    Example:
        >>> shown_epochs({"epoch": 3, "epochs": 9, "val_loss": 0.2}), shown_epochs({"epoch": 9, "epochs": 9})
        (('chosen epoch', '3 of 9'), ('epochs', '9 of 9'))
    """
    return "chosen epoch" if "val_loss" in results else "epochs", f"{results['epoch']} of {results['epochs']}"


def word(part: str) -> str:
    """What a part is called: ``validation``, ``test longer``."""
    return "validation" if part == "val" else part.replace("_", " ")

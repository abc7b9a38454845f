"""The pictures of a run and their captions."""

from functools import partial
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from app.plots.history import judged, loss_figure, rate_figure
from app.plots.memory import half_life_figure, strength_figure
from app.plots.predictions import confusion_figure, place_figure, residual_figure
from app.plots.projection import MARKS, MOST_NAMED, projection_figure
from app.plots.style import categories
from app.projection import principal_plane
from encoders.training.tasks.predict import Evaluation
from encoders.training.tasks.spec import TaskSpec

__all__ = ["Picture", "history_pictures", "memory_pictures", "quality_pictures"]


class Picture(NamedTuple):
    """One picture.

    Attributes:
        name: of its file, without the ending.
        title: one line.
        figure: the drawn figure.
        caption: what the picture shows.
        legend: ``(colour, mark, name)`` of its parts, if the picture has no legend.
    """

    name: str
    title: str
    figure: Figure
    caption: str
    legend: Sequence[Tuple[str, str, str]] = ()


def history_pictures(rows: Sequence[Dict[str, Any]], epoch: Optional[int], tokens: bool = False) -> List[Picture]:
    """Losses, the validation figure, and the learning rate.

    Args:
        rows: rows of ``metrics.csv``; those of the stage ``fit`` are drawn.
        epoch: the epoch of the weights; it is marked if validation has chosen it.
        tokens: whether the task is to predict the next token.
    """
    mine = [row for row in rows if row.get("stage", "fit") == "fit"]
    label, points = judged(mine, tokens)
    word = label.split(",")[0]
    more = f"{word[0].upper()}{word[1:]} and learning rate" if points else "Learning rate"
    validated = any(row.get("val_loss") not in (None, "") for row in mine)
    epoch = epoch if validated else None
    caption = "By epoch; the one with the lowest validation loss is chosen." if validated else "By epoch."
    return [
        Picture("loss", "Loss", loss_figure(mine, epoch), caption),
        Picture("rate", more, rate_figure(mine, epoch, tokens), "At the end of each epoch."),
    ]


def quality_pictures(spec: TaskSpec, test: Evaluation) -> List[Picture]:
    """How good the predictions are, and the embeddings in the plane."""
    found = []
    if test.confusion is not None and spec.names is not None:
        count, right = sum(map(sum, test.confusion)), sum(row[i] for i, row in enumerate(test.confusion))
        found.append(Picture("confusion", "Confusion matrix", confusion_figure(test.confusion, spec.names),
                             f"{right} of {count} right. A row is a true class; colour is the share of the row."))
    elif spec.kind == "values":
        truth, predicted = test.prediction.targets, test.prediction.columns["value"]
        known = ~truth.isnan().any(-1)
        names = [spec.name(i) for i in range(spec.outputs)]
        more = f" The first 4 of {len(names)} values." if len(names) > 4 else ""
        if bool(known.any()):
            figure = residual_figure(truth[known].double().numpy(), predicted[known].double().numpy(), names)
            found.append(Picture("residuals", "Predicted and true values", figure,
                                 f"Right: errors, all {int(known.sum()):,} of them.{more}"))
    if spec.per_step:
        places = _places(spec, test)
        found += [] if places is None else [places]
    return [*found, *_embeddings(spec, test)]


def memory_pictures(memory: Dict[str, Any], lengths: Tensor) -> List[Picture]:
    """Half-lives and write strengths.

    Args:
        memory: as `app.remember.measure_memory` gives it.
        lengths: of the sequences it was measured on.
    """
    name = memory["strength_name"]
    channels = len(memory["layers"][0]["heads"][0]["channels"]) > 1
    dots = "the median of its channels, which are shown as ticks" if channels else "for its mean decay"
    half = (f"The number of steps after which the decay alone has halved what a head stores. Dots: one for each head "
            f"({dots}). Thick lines: the middle half of all tokens; thin lines: 90 % of them. Overwriting a key makes "
            "a head forget sooner.")
    beyond = " Above 1 the state changes sign along the key." if memory["strongest"] > 1 else ""
    how = "a channel" if channels else "a head"
    write = (f"{name} is the share of what is stored for a key that {how} replaces at a token: 0 keeps it, 1 replaces "
             f"it.{beyond} A line for each head, and a dot at its mean.")
    return [
        Picture("half_life", "How long the layers remember",
                half_life_figure(memory, float(lengths.double().median())), half),
        Picture("strength", f"How strongly they write: {name}", strength_figure(memory), write),
    ]


def _places(spec: TaskSpec, test: Evaluation) -> Optional[Picture]:
    """How good the predictions are, by the number of the step."""
    prediction = test.prediction
    places = torch.cat([torch.arange(int(n)) for n in prediction.lengths])
    if spec.kind == "classes":
        known = prediction.targets >= 0
        good = (prediction.columns["predicted"] == prediction.targets).double()
        label, what = "right, %", "Share of the steps that are predicted correctly"
        good = 100 * good
    else:
        known = ~prediction.targets.isnan().any(-1)
        good = (prediction.columns["value"] - prediction.targets).double().square().mean(-1).sqrt()
        label, what = "error", "Mean error (root of the mean over the values)"
    if not bool(known.any()) or int(places[known].max()) == int(places[known].min()):
        return None
    figure = place_figure(places[known].numpy(), good[known].numpy(), label, 100 if spec.kind == "classes" else None)
    return Picture("places", "By step of the sequence", figure, f"{what}, by the number of the step.")


def _embeddings(spec: TaskSpec, test: Evaluation) -> List[Picture]:
    prediction = test.prediction
    if spec.per_step and len(set(prediction.lengths.tolist())) == 1:
        return []  # nothing to colour them by
    points, shares = principal_plane(prediction.embeddings)
    title, caption = "Embeddings", f"{len(points):,} test sequences in the plane of their largest variance (PCA)"
    draw = partial(projection_figure, points.numpy(), shares)
    if spec.per_step:
        figure = draw(values=prediction.lengths.double().numpy(), value_name="steps")
        return [Picture("embeddings", title, figure, f"{caption}, coloured by length.")]
    targets = prediction.targets
    if spec.kind == "values":
        figure = draw(values=targets[:, 0].double().numpy(), value_name=spec.name(0))
        return [Picture("embeddings", title, figure, f"{caption}, coloured by their true {spec.name(0)}.")]
    figure = draw(classes=targets.numpy())
    named = spec.names is not None and spec.outputs <= MOST_NAMED
    legend = [(colour, MARKS[i // 10 % len(MARKS)][1], spec.name(i))
              for i, colour in enumerate(categories(spec.outputs))] if named else []
    return [Picture("embeddings", title, figure, f"{caption}, coloured by their true class.", legend)]

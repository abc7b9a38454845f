"""``report.html``: one run on one page."""

import datetime
import shlex
from pathlib import Path
from typing import Any, List, Mapping, Optional, Sequence, Tuple

from app.figures import shown_epochs, shown_figures
from app.page import html
from app.page.html import Markup, join, section, tag
from app.page.run_tables import baselines_section, data_section
from app.pictures import Picture
from app.plots.style import to_svg
from encoders.pipeline import InputPipeline
from myfla.utils.atomic import write_atomic

__all__ = ["REPORT", "repeat_command", "write_run_page"]

REPORT = "report.html"


def write_run_page(
    folder: Path, results: Mapping[str, Any], config: str, groups: Sequence[Tuple[str, str, List[Picture]]],
    tables: Sequence[Optional[Markup]] = (),
) -> Path:
    """Write the page of a run.

    Args:
        folder: of the run.
        results: as in ``metrics.json``.
        config: the complete config, as YAML.
        groups: sections as ``(title, note, pictures)``; those without pictures are left out.
        tables: further sections.

    Returns:
        its path.
    """
    title = f"{results['encoder']} on {results['data']}"
    sections = [_section(name, note, pictures) for name, note, pictures in groups if pictures]
    parts = [html.cards(_cards(results)), baselines_section(results), *sections, *tables,
             data_section(results.get("data_summary")), _inputs(results), _settings(results, config), _files(folder)]
    text = html.page(title, _lead(results), *parts)
    path = folder / REPORT
    write_atomic(path, text.encode("utf-8"))
    return path


def repeat_command(overrides: Sequence[str]) -> str:
    """The command that runs it again as a single run.

    Example:
        >>> repeat_command(["hparams_search=optuna", "seed=1"])
        'python -m app hparams_search=optuna seed=1 hydra.mode=RUN'
    """
    searches = any(override.startswith("hparams_search=") for override in overrides)
    parts = [*overrides, *(["hydra.mode=RUN"] if searches else [])]
    return " ".join(["python -m app", *map(shlex.quote, parts)])


def _lead(results: Mapping[str, Any]) -> str:
    now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    run = f"evaluation of {results['run']}" if "run" in results else None
    seed = f"seed {results['seed']}" if "seed" in results else None
    parts = [run, results.get("objective"), seed, now]
    return " \u00b7 ".join(str(part) for part in parts if part)


def _cards(results: Mapping[str, Any]) -> List[Tuple[str, str]]:
    found = shown_figures(results)
    if "epoch" in results:
        found.append(shown_epochs(results))
    found.append(("parameters of the encoder", f"{results['encoder_parameters']:,}"))
    if "fit_seconds" in results:
        found.append(("training", f"{results['fit_seconds']:,.1f} s"))
    for key, label in (("train_tokens_per_s", "training, tokens/s"), ("encode_tokens_per_s", "encoding, tokens/s")):
        if key in results:
            found.append((label, f"{results[key]:,.0f}"))
    return found


def _section(name: str, note: str, pictures: List[Picture]) -> Markup:
    drawn = []
    for picture in pictures:
        svg = to_svg(picture.figure, picture.name, picture.title)
        below = html.legend(picture.legend) if picture.legend else None
        drawn.append(html.figure(svg, join(tag("strong", picture.title + ". "), picture.caption), below))
    return section(name, html.grid(*drawn), note=note or None)


def _inputs(results: Mapping[str, Any]) -> Optional[Markup]:
    """The columns that the run read and those that it left out."""
    if "inputs" not in results:
        return None
    pipeline = InputPipeline.from_facts(results["inputs"])
    parts = [html.paragraph(pipeline.describe())]
    schema = pipeline.schema
    if schema is not None:
        wide = len(schema.features)  # with data.own_scale a channel has a second one with the scale of its values
        rows = [(*column[:2], f"{mean:.6g}", f"{std:.6g}") for column, mean, std in
                zip(schema.features, pipeline.mean[:wide], pipeline.std[:wide])]
        measured = ["mean in training", "standard deviation"]
        parts.append(html.details("Every feature", html.table(["feature", "type", *measured], rows, right=measured)))
        if schema.left_out:
            parts.append(html.details("Left out", html.table(["column", "type", "why"], schema.left_out)))
    return section("Inputs", *parts)


def _settings(results: Mapping[str, Any], config: str) -> Markup:
    elsewhere = ("overrides", "inputs", "baselines", "data_summary")
    rows = [(name, _value(value)) for name, value in results.items() if name not in elsewhere]
    return section(
        "Settings", html.paragraph("To run it again:"), html.code(repeat_command(results.get("overrides", []))),
        html.details("The complete config", html.code(config)),
        html.details("All figures", html.table(["figure", "value"], rows, right=["value"])),
    )


def _files(folder: Path) -> Optional[Markup]:
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return section("Files", tag("p", " \u00b7 ".join(names), class_="note")) if names else None


def _value(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)

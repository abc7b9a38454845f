"""Tables of a run's page: the data, the classes, the worst cases, and the comparison with simple methods."""

from typing import Any, List, Mapping, Optional

from app.baselines.measure import FIGURE, better
from app.cases import ClassScore
from app.data_summary import summary_rows
from app.figures import FIGURES
from app.page import html
from app.page.html import Markup, join, section, tag

__all__ = ["baselines_section", "cases_section", "classes_table", "data_section"]

_MOST_CLASSES = 60


def data_section(summary: Optional[Mapping[str, Mapping[str, Any]]]) -> Optional[Markup]:
    """For each set: the number of sequences, their lengths, the share of missing values, and the sizes of the
    classes."""
    if not summary:
        return None
    columns, rows = summary_rows(summary)
    parts = [html.table(columns, rows, right=columns[1:])]
    classes: List[str] = list(next(iter(summary.values())).get("classes", {}))
    if classes:
        counts = [[name, *(f"{facts.get('classes', {}).get(name, 0):,}" for facts in summary.values())]
                  for name in classes[:_MOST_CLASSES]]
        names = list(summary)
        table = html.table(["class", *names], counts, right=names)
        parts.append(html.details(f"Each of the {len(classes)} classes", table))
    return section("Data", *parts)


def classes_table(scores: List[ClassScore]) -> Optional[Markup]:
    """Scores of each class; only the worst ones if there are many."""
    if not scores:
        return None
    columns = ["class", "sequences", "recall", "precision", "F1"]
    rows = [(one.name, f"{one.size:,}", *(f"{share:.1%}" for share in one[2:])) for one in scores[:_MOST_CLASSES]]
    return html.details("Each class, the worst first", html.table(columns, rows, right=columns[1:]))


def cases_section(columns: List[str], rows: List[List[Any]], *more: Any) -> Optional[Markup]:
    """The test sequences with the worst predictions."""
    if not rows and not any(more):
        return None
    table = html.table(columns, rows, right=columns[-1:]) if rows else None
    note = "The test sequences with the worst predictions. All predictions are in predictions.csv." if rows else None
    return section("Worst cases" if rows else "Classes", table, *more, note=note)


def baselines_section(results: Mapping[str, Any]) -> Optional[Markup]:
    """This run and simple methods on the same split, the best first."""
    found = results.get("baselines")
    if not found:
        return None
    kind = "classes" if "test_accuracy" in results else "values"
    key, label = FIGURE[kind]
    form = {name: form for name, _, form in FIGURES}[key]
    own = results.get(f"test_{key}")
    rows: List[Any] = [(name, figures[key]) for name, figures in found.items()]
    rows += [] if own is None else [(tag("strong", f"this run ({results['encoder']})"), own)]
    rows.sort(key=lambda row: -row[1] if kind == "classes" else row[1])
    ahead = [] if own is None else better(found, own, kind)
    note = "Trained and tested on the same sequences."
    if ahead:
        note = join(tag("span", f"{ahead[0][0]} does better than this run.", class_="bad"), " ", note)
    shown = [(name, form.format(value)) for name, value in rows]
    table = html.table(["method", f"test {label}"], shown, right=[f"test {label}"])
    return section("Comparison with simple methods", table, note=note)

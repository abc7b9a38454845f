"""Markup from parts. All text is escaped; only `Markup` is used as it is."""

from html import escape
from pathlib import Path
from string import Template
from typing import Any, Iterable, Sequence, Tuple

__all__ = ["Markup", "cards", "code", "details", "figure", "grid", "join", "legend", "page", "paragraph", "section",
           "table", "tag"]

_HERE = Path(__file__).parent
_NARROW = 3  # columns that fit on a phone; a row with more is shown there as lines with the columns' names


class Markup(str):
    """Text that is HTML already."""


def join(*parts: Any) -> Markup:
    """The parts in order; everything except `Markup` is text and is escaped. None is left out.

    Example:
        >>> join(tag("b", "x"), " < y")
        '<b>x</b> &lt; y'
    """
    return Markup("".join(part if isinstance(part, Markup) else _text(part) for part in parts if part is not None))


def tag(name: str, *parts: Any, **attributes: str) -> Markup:
    """An element; ``class_`` stands for ``class``."""
    given = "".join(f' {key.rstrip("_").replace("_", "-")}="{_text(value)}"' for key, value in attributes.items())
    return Markup(f"<{name}{given}>{join(*parts)}</{name}>")


def section(title: str, *parts: Any, note: Any = None) -> Markup:
    """A part of the page with a heading and a line of explanation."""
    return tag("section", tag("h2", title), tag("p", note, class_="note") if note is not None else None, *parts)


def figure(svg: str, caption: Any, *below: Any) -> Markup:
    """A picture from `app.plots.style.to_svg`, its caption, and further parts."""
    return tag("figure", tag("div", Markup(svg), class_="picture"), *below, tag("figcaption", caption))


def grid(*figures: Any) -> Markup:
    """Pictures side by side where there is room."""
    return tag("div", *figures, class_="grid")


def cards(values: Iterable[Tuple[str, str]]) -> Markup:
    """Figures in large print: ``(label, value)``."""
    return tag("dl", *(tag("div", tag("dt", label), tag("dd", value)) for label, value in values), class_="cards")


def legend(entries: Iterable[Tuple[str, str, str]]) -> Markup:
    """``(colour, mark, name)`` of what a picture shows."""
    return tag("ul", *(tag("li", tag("span", mark, style=f"color:{colour}", aria_hidden="true"), name)
                       for colour, mark, name in entries), class_="legend")


def table(columns: Sequence[Any], rows: Iterable[Sequence[Any]], right: Sequence[Any] = (),
          best: bool = False) -> Markup:
    """A table, which scrolls if it is too wide; None is an empty cell; ``best`` marks the first row."""
    sides = ["num" if column in right else "txt" for column in columns]

    def line(cells: Sequence[Any], marked: bool = False) -> Markup:
        more = {"class_": "best"} if marked else {}
        return tag("tr", *(tag("td", cell, class_=side, data_label=column) for cell, side, column in
                           zip(cells, sides, columns)), **more)

    head = tag("tr", *(tag("th", column, class_=side) for column, side in zip(columns, sides)))
    body = tag("tbody", *(line(row, best and i == 0) for i, row in enumerate(rows)))
    wide = {"class_": "wide"} if len(columns) > _NARROW else {}
    return tag("div", tag("table", tag("thead", head), body, **wide), class_="scroll", tabindex="0")


def code(text: str) -> Markup:
    """Lines to copy."""
    return tag("pre", tag("code", text), tabindex="0")


def paragraph(*parts: Any) -> Markup:
    return tag("p", *parts)


def details(summary: str, *parts: Any) -> Markup:
    """A section that opens on a click."""
    return tag("details", tag("summary", summary), *parts)


def page(title: str, lead: Any, *parts: Any) -> str:
    """The whole file.

    Args:
        title: of the page.
        lead: a line below it.
        parts: sections.
    """
    template = Template((_HERE / "page.html").read_text(encoding="utf-8"))
    style = (_HERE / "page.css").read_text(encoding="utf-8")
    return template.substitute(title=_text(title), style=style, lead=join(lead), body=join(*parts))


def _text(value: Any) -> str:
    """Escaped text without lone surrogates, which cannot be written to a file."""
    return escape(str(value).encode("utf-8", "replace").decode("utf-8"))

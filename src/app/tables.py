"""Tables on the terminal."""

from typing import Any, Optional, Sequence

__all__ = ["console", "say", "show_table"]

WIDTH = 160


def console() -> Any:
    """A `rich.console.Console` for standard output; wide if that is a file or a pipe."""
    from rich.console import Console

    made = Console()
    return made if made.is_terminal else Console(width=WIDTH)


def show_table(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], title: Optional[str] = None, right: Sequence[str] = ()
) -> None:
    """Print a table; cells are shown as they are, never read as markup.

    Args:
        columns: names, one for each cell of a row.
        rows: cells; None is left empty.
        title: above the table.
        right: columns that are aligned to the right, as numbers are.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for name in columns:
        table.add_column(Text(name), justify="right" if name in right else "left")
    for row in rows:
        table.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
    screen = console()
    if title:
        screen.print(title, style="bold", markup=False, highlight=False)
    screen.print(table)


def say(text: str) -> None:
    """Print text as it is."""
    console().print(text, markup=False, highlight=False)

"""Files as people have them, and what must come of each: the right values, or the exact message.

A case is ``(files, settings, want)``. Files are text or bytes, by name; ``want`` is a message (``DIR``
stands for the folder), or a `Want`.
"""

from typing import Any, Dict, List, NamedTuple, Optional

NAN = float("nan")
KINDS = ("up", "up", "down", "down")


class Want(NamedTuple):
    """What is read.

    Attributes:
        x: the sequences by name, or in order, each a list of steps; of one channel, plain numbers.
        says: the lines that are said, in order; None where another case says it.
        classes: names; targets: of the sequences, classes by name.
        names: of the sequences.
    """

    x: Any = None
    says: Optional[List[str]] = None
    classes: Optional[List[str]] = None
    targets: Any = None
    names: Optional[List[str]] = None


def column(cells: Any, sep: str = ",", others: Any = (1.5, 2.5, 3.5, 4.5)) -> str:
    """A long table of two sequences of two steps, a column ``x`` of these cells and a column ``y`` of numbers."""
    lines = [sep.join(("id", "t", "x", "y", "kind"))]
    for i, cell in enumerate(cells):
        quoted = f'"{cell}"' if sep in cell else cell
        lines.append(sep.join(("ab"[i // 2], str(i % 2), quoted, str(others[i]), KINDS[i])))
    return "\n".join(lines) + "\n"


LONG = {"sequence": "id", "time": "t", "label": "kind"}
AUTO = {**LONG, "missing": "mean"}
X = {**AUTO, "features": ["x"]}


def _numbers() -> Dict[str, Any]:
    """One column of cells: read, or left out with a line; named, an error with row and remedy."""
    read = {
        "whole": ("1 2 3 4", [1, 2, 3, 4]),
        "fractions": ("0.5 1e3 -2.5E-1 .5", [0.5, 1000, -0.25, 0.5]),
        "signs and spaces": ("+1|  2|-3 |4.", [1, 2, -3, 4]),
        "beyond 2**53": ("9007199254740993 1 2 3", [2.0**53, 1, 2, 3]),
        "shortest and longest": (
            "0.1 1.7976931348623157 5e-324 0.30000000000000004",
            [0.1, 1.7976931348623157, 5e-324, 0.30000000000000004],
        ),
        "empty is missing": ("1||3|4", [1, NAN, 3, 4]),
        "nan is missing": ("1 nan NaN 4", [1, NAN, NAN, 4]),
        "spaces are missing": ("1|  |3|4", [1, NAN, 3, 4]),
        "true and false": ("true False TRUE false", [1, 0, 1, 0]),
        "leading zeros": ("007 010 3 4", [7, 10, 3, 4]),
    }
    cases: Dict[str, Any] = {}
    for name, (cells, want) in read.items():
        cells = cells.split("|") if "|" in cells else cells.split()
        cases[f"numbers: {name}"] = ({"a.csv": column(cells)}, X, Want({"a": want[:2], "b": want[2:]}))
    odd = {
        "question mark": (
            "1 ? 3 4",
            "1 of 4 cells is not a number, the first '?' in a.csv, row 2",
            2,
            "?",
            "leave the cell empty if it is missing, or set data.na_values=['?']",
        ),
        "dash": (
            "1 2 - -",
            "2 of 4 cells are not numbers, the first '-' in a.csv, row 3",
            3,
            "-",
            "leave the cell empty if it is missing, or set data.na_values=['-']",
        ),
        "NA": (
            "1 2 3 NA",
            "1 of 4 cells is not a number, the first 'NA' in a.csv, row 4",
            4,
            "NA",
            "leave the cell empty if it is missing, or set data.na_values=['NA']",
        ),
        "one percent": (
            "1 2 3 5%",
            "1 of 4 cells is not a number, the first '5%' in a.csv, row 4",
            4,
            "5%",
            "write it without the sign",
        ),
        "percents": ("1% 2% 3% 5%", "text, such as '1%'", 1, "1%", "write it without the sign"),
        "units": (
            "1|2|3|4 kg",
            "1 of 4 cells is not a number, the first '4 kg' in a.csv, row 4",
            4,
            "4 kg",
            "correct it, or leave the column out of data.features",
        ),
        "thousands": (
            "1 2 3 1,234.5",
            "1 of 4 cells is not a number, the first '1,234.5' in a.csv, row 4",
            4,
            "1,234.5",
            "set data.decimal=comma, or data.thousands=comma",
        ),
        "Python's underscore": (
            "1 2 3 1_000",
            "1 of 4 cells is not a number, the first '1_000' in a.csv, row 4",
            4,
            "1_000",
            "correct it, or leave the column out of data.features",
        ),
        "hexadecimal": (
            "0x1 0x2 0x3 0x4",
            "text, such as '0x1'",
            1,
            "0x1",
            "correct it, or leave the column out of data.features",
        ),
        "text": ("calm calm busy calm", "text", 1, "calm", "correct it, or leave the column out of data.features"),
        "lists": (
            "[1;2] [3] [4] [5]",
            "text, such as '[1;2]'",
            1,
            "[1;2]",
            "correct it, or leave the column out of data.features",
        ),
    }
    for name, (cells, why, row, cell, hint) in odd.items():
        cells = cells.split("|") if "|" in cells else cells.split()
        cases[f"odd cells: {name}"] = (
            {"a.csv": column(cells)},
            AUTO,
            Want({"a": [1.5, 2.5], "b": [3.5, 4.5]}, [f"1 feature: y; left out: x ({why})"]),
        )
        cases[f"odd cells, named: {name}"] = (
            {"a.csv": column(cells)},
            X,
            (f"DIR/a.csv: row {row}, column 'x' must hold numbers; got {cell!r}; {hint}"),
        )
    return cases


def _marks() -> Dict[str, Any]:
    """Separators, decimals, thousands, encodings, packing."""
    comma = "DIR/a.csv: the comma is before the fraction in x"
    plain = {"a": [1.5, 2.5], "b": [3.5, 4.5]}
    german = column(["1,5", "2,5", "3,5", "4,5"], ";", ("1", "2", "3", "4"))
    cases: Dict[str, Any] = {
        f"separator {name}": ({f"a.{end}": column(["1.5", "2.5", "3.5", "4.5"], sep)}, X, Want(plain))
        for name, sep, end in (
            ("comma", ",", "csv"),
            ("semicolon", ";", "csv"),
            ("tab", "\t", "tsv"),
            ("space", " ", "txt"),
            ("pipe", "|", "csv"),
            ("tab in .csv", "\t", "csv"),
        )
    }
    cases.update(
        {
            "separator of several spaces": (
                {"a.txt": "id  t   x kind\n a  0 1.5   up\n a  1 2.5   up  \nb  0 3.5 down\nb  1 4.5 down\n"},
                X,
                Want(plain),
            ),
            "separator set": (
                {"a.csv": column(["1.5", "2.5", "3.5", "4.5"], "~")},
                {**X, "separator": "~"},
                Want(plain),
            ),
            "separator set wrong": (
                {"a.csv": column(["1.5", "2.5", "3.5", "4.5"])},
                {**X, "separator": "semicolon"},
                "data.sequence must be a column of DIR/a.csv; got 'id'; it has id,t,x,y,kind",
            ),
            "separator of a spreadsheet": (
                {"a.csv": "sep=;\n" + column(["1.5", "2.5", "3.5", "4.5"], ";")},
                X,
                Want(plain),
            ),
            "decimal comma found": (
                {"a.csv": german},
                X,
                Want(plain, [comma, "1 feature: x; left out: y (not in data.features)"]),
            ),
            "decimal comma in quotes": ({"a.csv": column(["1,5", "2,5", "3,5", "4,5"])}, X, Want(plain)),
            "decimal comma settles another column": (
                {"a.csv": column(["1,234", "2,500", "3", "4"], ";", ("0,5", "1,5", "2,5", "3,5"))},
                AUTO,
                Want({"a": [[1.234, 0.5], [2.5, 1.5]], "b": [[3, 2.5], [4, 3.5]]}, [comma + ", y", "2 features: x, y"]),
            ),
            "comma of either kind": (
                {"a.csv": column(["1,234", "2,500", "3", "4"], ";", ("1", "2", "3", "4.5"))},
                AUTO,
                Want(
                    {"a": [1, 2], "b": [3, 4.5]},
                    [
                        "1 feature: y; left out: x (numbers such as '1,234', whose comma may "
                        "separate thousands: set data.decimal=comma or data.thousands=comma)"
                    ],
                ),
            ),
            "comma of either kind, named": (
                {"a.csv": column(["1,234", "2,500", "3", "4"], ";", ("1", "2", "3", "4"))},
                X,
                "DIR/a.csv: column 'x' must hold numbers of one kind; got \"numbers such as '1,234', whose "
                "comma may separate "
                'thousands: set data.decimal=comma or data.thousands=comma"',
            ),
            "comma between thousands, said": (
                {"a.csv": column(["1,234", "2,500", "3", "1,234,567.5"], ";")},
                {**X, "thousands": "comma"},
                Want({"a": [1234, 2500], "b": [3, 1234567.5]}),
            ),
            "points between thousands, said": (
                {"a.csv": column(["1.234,5", "2.500", "3", "4"], ";")},
                {**X, "thousands": "point", "decimal": "comma"},
                Want({"a": [1234.5, 2500], "b": [3, 4]}),
            ),
            "spaces between thousands, said": (
                {"a.csv": column(["1 234", "2 500", "3", "4"])},
                {**X, "thousands": "space"},
                Want({"a": [1234, 2500], "b": [3, 4]}),
            ),
            "points of thousands beside decimal commas": (
                {"a.csv": column(["1.234", "2.500", "3.000", "4.000"], ";", ("0,5", "1,5", "2,5", "3,5"))},
                AUTO,
                Want(
                    {"a": [0.5, 1.5], "b": [2.5, 3.5]},
                    [
                        "DIR/a.csv: the comma is before the fraction in y",
                        "1 feature: y; left out: x (numbers such as '1.234', "
                        "whose point may separate thousands: set data.decimal=point or data.thousands=point)",
                    ],
                ),
            ),
            "marks for missing, said": (
                {"a.csv": column(["1", "?", "-", "4"])},
                {**X, "na_values": ["?", "-"]},
                Want({"a": [1, NAN], "b": [NAN, 4]}),
            ),
        }
    )
    return cases


NUMBER_CASES: Dict[str, Any] = {**_numbers(), **_marks()}

"""Files as people have them, and what must come of each: the right values, or the exact message.

A case is ``(files, settings, want)``. Files are text, bytes or rows for Parquet, by name; ``want`` is a message (``DIR``
stands for the folder), or a `Want`.
"""

import gzip
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
        "whole": ("1 2 3 4", [1, 2, 3, 4]), "fractions": ("0.5 1e3 -2.5E-1 .5", [0.5, 1000, -0.25, 0.5]),
        "signs and spaces": ("+1|  2|-3 |4.", [1, 2, -3, 4]), "beyond 2**53": ("9007199254740993 1 2 3", [2.0**53, 1, 2, 3]),
        "shortest and longest": ("0.1 1.7976931348623157 5e-324 0.30000000000000004", [0.1, 1.7976931348623157, 5e-324,
                                                                                     0.30000000000000004]),
        "empty is missing": ("1||3|4", [1, NAN, 3, 4]), "nan is missing": ("1 nan NaN 4", [1, NAN, NAN, 4]),
        "spaces are missing": ("1|  |3|4", [1, NAN, 3, 4]), "true and false": ("true False TRUE false", [1, 0, 1, 0]),
        "leading zeros": ("007 010 3 4", [7, 10, 3, 4]),
    }
    cases: Dict[str, Any] = {}
    for name, (cells, want) in read.items():
        cells = cells.split("|") if "|" in cells else cells.split()
        cases[f"numbers: {name}"] = ({"a.csv": column(cells)}, X, Want({"a": want[:2], "b": want[2:]}))
    odd = {
        "question mark": ("1 ? 3 4", "1 of 4 cells is no number, the first '?' in a.csv, row 2", 2, "?",
                          "leave the cell empty if it is missing, or say data.na_values=['?']"),
        "dash": ("1 2 - -", "2 of 4 cells are no numbers, the first '-' in a.csv, row 3", 3, "-",
                 "leave the cell empty if it is missing, or say data.na_values=['-']"),
        "NA": ("1 2 3 NA", "1 of 4 cells is no number, the first 'NA' in a.csv, row 4", 4, "NA",
               "leave the cell empty if it is missing, or say data.na_values=['NA']"),
        "one percent": ("1 2 3 5%", "1 of 4 cells is no number, the first '5%' in a.csv, row 4", 4, "5%",
                        "write it without the sign"),
        "percents": ("1% 2% 3% 5%", "text, such as '1%'", 1, "1%", "write it without the sign"),
        "units": ("1|2|3|4 kg", "1 of 4 cells is no number, the first '4 kg' in a.csv, row 4", 4, "4 kg",
                  "correct it, or leave the column out of data.features"),
        "thousands": ("1 2 3 1,234.5", "1 of 4 cells is no number, the first '1,234.5' in a.csv, row 4", 4, "1,234.5",
                      "say data.decimal=comma, or data.thousands=comma"),
        "Python's underscore": ("1 2 3 1_000", "1 of 4 cells is no number, the first '1_000' in a.csv, row 4", 4, "1_000",
                                "correct it, or leave the column out of data.features"),
        "hexadecimal": ("0x1 0x2 0x3 0x4", "text, such as '0x1'", 1, "0x1",
                        "correct it, or leave the column out of data.features"),
        "text": ("calm calm busy calm", "text", 1, "calm", "correct it, or leave the column out of data.features"),
        "lists": ("[1;2] [3] [4] [5]", "text, such as '[1;2]'", 1, "[1;2]",
                  "correct it, or leave the column out of data.features"),
    }
    for name, (cells, why, row, cell, hint) in odd.items():
        cells = cells.split("|") if "|" in cells else cells.split()
        cases[f"odd cells: {name}"] = ({"a.csv": column(cells)}, AUTO, Want(
            {"a": [1.5, 2.5], "b": [3.5, 4.5]}, [f"1 features: y; left out: x ({why})"]))
        cases[f"odd cells, named: {name}"] = ({"a.csv": column(cells)}, X, (
            f"DIR/a.csv: row {row}, column 'x' must hold numbers; got {cell!r}; {hint}"))
    return cases


def _marks() -> Dict[str, Any]:
    """Separators, decimals, thousands, encodings, packing."""
    comma = "DIR/a.csv: the comma is before the fraction in x"
    plain = {"a": [1.5, 2.5], "b": [3.5, 4.5]}
    german = column(["1,5", "2,5", "3,5", "4,5"], ";", ("1", "2", "3", "4"))
    cases: Dict[str, Any] = {
        f"separator {name}": ({f"a.{end}": column(["1.5", "2.5", "3.5", "4.5"], sep)}, X, Want(plain))
        for name, sep, end in (("comma", ",", "csv"), ("semicolon", ";", "csv"), ("tab", "\t", "tsv"),
                               ("space", " ", "txt"), ("pipe", "|", "csv"), ("tab in .csv", "\t", "csv"))}
    cases.update({
        "separator of several spaces": ({"a.txt": "id  t   x kind\n a  0 1.5   up\n a  1 2.5   up  \nb  0 3.5 down\n"
                                         "b  1 4.5 down\n"}, X, Want(plain)),
        "separator set": ({"a.csv": column(["1.5", "2.5", "3.5", "4.5"], "~")}, {**X, "separator": "~"}, Want(plain)),
        "separator set wrong": ({"a.csv": column(["1.5", "2.5", "3.5", "4.5"])}, {**X, "separator": "semicolon"},
                                "data.sequence must be a column of DIR/a.csv; got 'id'; it has id,t,x,y,kind"),
        "separator of a spreadsheet": ({"a.csv": "sep=;\n" + column(["1.5", "2.5", "3.5", "4.5"], ";")}, X, Want(plain)),
        "decimal comma found": ({"a.csv": german}, X, Want(plain, [comma, "1 features: x; left out: y (not in "
                                                                  "data.features)"])),
        "decimal comma in quotes": ({"a.csv": column(["1,5", "2,5", "3,5", "4,5"])}, X, Want(plain)),
        "decimal comma settles another column": (
            {"a.csv": column(["1,234", "2,500", "3", "4"], ";", ("0,5", "1,5", "2,5", "3,5"))}, AUTO,
            Want({"a": [[1.234, 0.5], [2.5, 1.5]], "b": [[3, 2.5], [4, 3.5]]}, [comma + ", y", "2 features: x, y"])),
        "comma of either kind": (
            {"a.csv": column(["1,234", "2,500", "3", "4"], ";", ("1", "2", "3", "4.5"))}, AUTO,
            Want({"a": [1, 2], "b": [3, 4.5]}, ["1 features: y; left out: x (numbers such as '1,234', whose comma may "
                                               "part thousands: say data.decimal=comma or data.thousands=comma)"])),
        "comma of either kind, named": (
            {"a.csv": column(["1,234", "2,500", "3", "4"], ";", ("1", "2", "3", "4"))}, X,
            "DIR/a.csv: column 'x' must hold numbers of one kind; got \"numbers such as '1,234', whose comma may part "
            "thousands: say data.decimal=comma or data.thousands=comma\""),
        "comma between thousands, said": (
            {"a.csv": column(["1,234", "2,500", "3", "1,234,567.5"], ";")}, {**X, "thousands": "comma"},
            Want({"a": [1234, 2500], "b": [3, 1234567.5]})),
        "points between thousands, said": (
            {"a.csv": column(["1.234,5", "2.500", "3", "4"], ";")}, {**X, "thousands": "point", "decimal": "comma"},
            Want({"a": [1234.5, 2500], "b": [3, 4]})),
        "spaces between thousands, said": ({"a.csv": column(["1 234", "2 500", "3", "4"])}, {**X, "thousands": "space"},
                                           Want({"a": [1234, 2500], "b": [3, 4]})),
        "points of thousands beside decimal commas": (
            {"a.csv": column(["1.234", "2.500", "3.000", "4.000"], ";", ("0,5", "1,5", "2,5", "3,5"))}, AUTO,
            Want({"a": [0.5, 1.5], "b": [2.5, 3.5]}, [
                "DIR/a.csv: the comma is before the fraction in y", "1 features: y; left out: x (numbers such as '1.234', "
                "whose point may part thousands: say data.decimal=point or data.thousands=point)"])),
        "marks for missing, said": ({"a.csv": column(["1", "?", "-", "4"])}, {**X, "na_values": ["?", "-"]},
                                    Want({"a": [1, NAN], "b": [NAN, 4]})),
    })
    text = column(["1.5", "2.5", "3.5", "4.5"]).replace("up", "größer")
    says = "DIR/a.csv is not UTF-8 and was read as cp1252; set data.encoding"
    rest = "1 features: x; left out: y (not in data.features)"
    for name, data, lines in (("UTF-8", text.encode(), [rest]), ("UTF-8 with a mark", text.encode("utf-8-sig"), [rest]),
                              ("UTF-16", text.encode("utf-16"), [rest]),
                              ("UTF-16 big", b"\xfe\xff" + text.encode("utf-16-be"), [rest]),
                              ("latin-1", text.encode("latin-1"), [says, rest])):
        cases[f"encoding {name}"] = ({"a.csv": data}, X, Want(plain, lines, ["down", "größer"]))
    cases.update({
        "encoding said": ({"a.csv": text.encode("cp437")}, {**X, "encoding": "cp437"}, Want(plain, [rest], ["down",
                                                                                                    "größer"])),
        "encoding unknown": ({"a.csv": text}, {**X, "encoding": "utf-99"},
                             "data.encoding must be an encoding that Python knows; got 'utf-99'"),
        "encoding said wrong": ({"a.csv": text.encode("latin-1")}, {**X, "encoding": "utf-8"},
                                "DIR/a.csv: cannot be read as csv: 'utf-8' codec can't decode byte 0xf6 in position 28: "
                                "invalid start byte; say with data.encoding what it is"),
        "UTF-16 without a mark": ({"a.csv": text.encode("utf-16-le")}, X, (
            "DIR/a.csv: file must be text; got 'a byte of zero'; say data.encoding=utf-16-le if it is UTF-16 without a "
            "mark")),
        "UTF-16 without a mark, said": ({"a.csv": text.encode("utf-16-le")}, {**X, "encoding": "utf-16-le"}, Want(plain)),
        "packed": ({"a.csv.gz": gzip.compress(text.encode())}, X, Want(plain)),
        "packed, cut short": ({"a.csv.gz": gzip.compress(text.encode())[:-12]}, X, (
            "DIR/a.csv.gz: cannot be read as csv: Compressed file ended before the end-of-stream marker was reached")),
        "packed, by the name only": ({"a.csv.gz": text.encode()}, X, (
            "DIR/a.csv.gz: cannot be read as csv: Not a gzipped file (b'id')")),
        "lines of Windows": ({"a.csv": text.replace("\n", "\r\n")}, X, Want(plain)),
        "lines of old Macs": ({"a.csv": text.replace("\n", "\r")}, X, Want(plain)),
        "empty lines": ({"a.csv": text.replace("\n", "\n\n") + "\n\n"}, X, Want(plain)),
        "no end of the last line": ({"a.csv": text.rstrip("\n")}, X, Want(plain)),
        "a line break in quotes": ({"a.csv": "id,t,x,kind,note\na,0,1.5,up,\"two\nlines\"\na,1,2.5,up,\nb,0,3.5,down,\n"
                                    "b,1,4.5,down,\n"}, X, Want(plain)),
        "a quote that is not closed": ({"a.csv": text + 'b,2,"5.5,1,down\n'}, X,
                                       "DIR/a.csv: cannot be read as csv: unexpected end of data"),
        "a row too long": ({"a.csv": text + "b,2,5.5,1,down,6\n"}, X, (
            "DIR/a.csv: row 5 must have 5 cells, as the header has; got 6; correct it, or set data.separator, which is "
            "taken to be ','")),
        "a row too short": ({"a.csv": text + "b,2\n"}, X, (
            "DIR/a.csv: row 5 must have 5 cells, as the header has; got 2; correct it, or set data.separator, which is "
            "taken to be ','")),
    })
    return cases


def _heads() -> Dict[str, Any]:
    """Headers, and columns that are never inputs."""
    body = column(["1", "2", "5", "4"])
    rows = [line.split(",") for line in body.splitlines()]
    plain = {"a": [[1, 1.5], [2, 2.5]], "b": [[5, 3.5], [4, 4.5]]}
    kept = "2 features: x, y; left out: "

    def front(name: str, cells: Any) -> str:
        return "".join(",".join([cell, *row]) + "\n" for cell, row in zip([name, *cells], rows))

    def back(name: str, cells: Any) -> str:
        return "".join(",".join([*row, cell]) + "\n" for cell, row in zip([name, *cells], rows))

    headless = "\n".join(body.splitlines()[1:]) + "\n"
    no_names = ("write a line of names above it, or say data.header=false: the columns are then 1, 2, 3, ...; where these "
                "are names, say data.header=true")
    four = "id,t,x,kind,code\n" + "".join(f"{'abcd'[i // 2]},{i % 2},{v},{'uv'[i // 2 % 2]},{'73'[i // 2 % 2]}\n"
                                          for i, v in enumerate((5, 1, 4, 2, 8, 3, 6, 0)))
    six = "".join(f"{'abc'[i // 2]},{i % 2},{v},{'uv'[i // 2 % 2]},{i}\n" for i, v in enumerate((5, 1, 4, 2, 8, 3)))
    return {
        "index of pandas, nameless": ({"a.csv": front("", "0123")}, AUTO, Want(
            plain, [kept + "(no name) (index of pandas)"])),
        "index of pandas, read and written again": ({"a.csv": front("Unnamed: 0", "0123")}, AUTO, Want(
            plain, [kept + "Unnamed: 0 (index of pandas)"])),
        "index of pandas, named": ({"a.csv": front("Unnamed: 0", ["4", "7", "9", "2"])}, {**AUTO, "features": ["Unnamed: 0"]},
                                   Want({"a": [4, 7], "b": [9, 2]})),
        "index reset": ({"a.csv": front("index", ["4", "7", "9", "2"])}, AUTO, Want(plain, [
            "DIR/a.csv: column 'index' is left out as a row number; to read it, name it in data.features",
            kept + "index (row number)"])),
        "row number by its values": ({"a.csv": "id,t,x,kind,n\n" + six}, AUTO, Want({"a": [5, 1], "b": [4, 2], "c": [8, 3]}, [
            "DIR/a.csv: column 'n' is left out as a row number; to read it, name it in data.features",
            "1 features: x; left out: n (row number)"])),
        "row number, named": ({"a.csv": "id,t,x,kind,n\n" + six}, {**AUTO, "features": ["n"]}, Want(
            {"a": [0, 1], "b": [2, 3], "c": [4, 5]}, ["DIR/a.csv: column 'n' is a row number",
                                                     "1 features: n; left out: x (not in data.features)"])),
        "label in numbers": ({"a.csv": four}, AUTO, Want({"a": [5, 1], "b": [4, 2], "c": [8, 3], "d": [6, 0]}, [
            "DIR/a.csv: column 'code' is left out as a copy of the label; to read it, name it in data.features",
            "1 features: x; left out: code (copy of the label)"])),
        "label in numbers, named": ({"a.csv": four}, {**AUTO, "features": ["code"]}, Want(
            {"a": [7, 7], "b": [3, 3], "c": [7, 7], "d": [3, 3]}, [
                "DIR/a.csv: column 'code' is a copy of the label",
                "1 features: code; left out: x (not in data.features)"])),
        "label at each step in numbers": ({"a.csv": four}, {**AUTO, "per_step": True}, Want(None, [
            "DIR/a.csv: column 'code' is left out as a copy of the label; to read it, name it in data.features",
            "1 features: x; left out: code (copy of the label)"])),
        "number of the sequence": ({"a.csv": back("no", "1100")}, {**AUTO, "label": None}, Want(
            plain, ["DIR/a.csv: column 'no' is left out as a copy of the sequence's number; to read it, name it in "
                    "data.features", kept + "kind (text), no (copy of the sequence's number)"])),
        "a constant of each sequence is no copy": ({"a.csv": back("weight", ["61.5", "61.5", "80.25", "80.25"])}, {
            **AUTO, "label": None}, Want({"a": [[61.5, 1, 1.5], [61.5, 2, 2.5]], "b": [[80.25, 5, 3.5], [80.25, 4, 4.5]]})),
        "copy of a target": ({"a.csv": "id,x,z,kind\na,5,2,0.5\nb,1,6,1.5\nc,7,4,1\n"}, {
            "sequence": "id", "targets": ["kind"]}, Want({"a": [5], "b": [1], "c": [7]}, [
                "DIR/a.csv: column 'z' is left out as a copy of kind; to read it, name it in data.features",
                "1 features: x; left out: z (copy of kind)"])),
        "only copies": ({"a.csv": "".join(",".join(cell for i, cell in enumerate(line.split(",")) if i != 2) + "\n"
                                         for line in four.splitlines())}, AUTO, (
            "DIR/a.csv: features must be more than copies of what is known; got 'code (copy of the label)'; name with "
            "data.features what to read, e.g. data.features=[code]")),
        "an empty column": ({"a.csv": back("gap", ["", "", "", ""])}, AUTO, Want(plain, [kept + "gap (empty)"])),
        "an empty column, named": ({"a.csv": back("gap", ["", "", "", ""])}, {**AUTO, "features": ["gap"]}, (
            "DIR/a.csv: column 'gap' must have a value somewhere; got 'only empty cells'; leave it out of data.features")),
        "a comma too many at every end": ({"a.csv": back("", ["", "", "", ""])}, AUTO, Want(
            plain, [kept + "(no name) (empty (column 6 has no name))"])),
        "dates": ({"a.csv": back("day", ["2024-01-01"] * 4)}, AUTO, Want(plain, [
            kept + "day (dates, such as '2024-01-01')"])),
        "names with spaces around": ({"a.csv": body.replace("id,t,x,y,kind", "id , t, x ,y, kind")}, AUTO, Want(plain)),
        "names beyond ASCII": ({"a.csv": body.replace("x,y", "größe,温度")}, {**AUTO, "features": ["温度"]}, Want(
            {"a": [1.5, 2.5], "b": [3.5, 4.5]})),
        "two columns of one name": ({"a.csv": body.replace("x,y", "x,x")}, AUTO, (
            "DIR/a.csv: columns must have different names; got 'x'; it is that of columns 3 and 4")),
        "order by names and not by the file": ({"a.csv": body.replace("x,y", "x10,x2")}, AUTO, Want(
            {"a": [[1.5, 1], [2.5, 2]], "b": [[3.5, 5], [4.5, 4]]}, ["2 features: x2, x10"])),
        "no header": ({"a.csv": headless}, {"features": None, "window": 2}, (
            f"DIR/a.csv: first line must name the columns; got ['a', '0', '1', '1.5', 'up']; {no_names}")),
        "no header, columns named": ({"a.csv": headless}, AUTO, (
            f"DIR/a.csv: first line must name the columns; got ['a', '0', '1', '1.5', 'up']; {no_names}")),
        "no header, said": ({"a.csv": headless}, {"sequence": "1", "time": "2", "label": "5", "header": False}, Want(
            plain, ["2 features: 3, 4"], ["down", "up"])),
        "numbers as names, said": ({"a.csv": "0.5,7,id\n1,2,a\n3,4,a\n"}, {"sequence": "id", "header": True}, Want(
            {"a": [[1, 2], [3, 4]]})),
        "an unknown column": ({"a.csv": body}, {**AUTO, "label": "kinds"},
                              "data.label must be a column of DIR/a.csv; got 'kinds'; did you mean 'kind'?"),
        "no numbers at all": ({"a.csv": "id,t,kind,note\na,0,up,so\nb,0,down,so\n"}, AUTO, (
            "data.features must name columns of DIR/a.csv, which has none of numbers left; got None; left out: note "
            "(text)")),
        "only a header": ({"a.csv": "id,t,x,kind\n"}, AUTO, "DIR/a.csv: rows must be at least one; got 0"),
        "nothing": ({"a.csv": ""}, AUTO, "DIR/a.csv: file must have a header and rows; got '0 bytes'"),
        "only empty lines": ({"a.csv": "\n\n  \n"}, AUTO, "DIR/a.csv: file must have a header and rows; got 'only empty "
                             "lines'"),
    }


def _labels() -> Dict[str, Any]:
    """Labels, ids and times."""
    def labelled(*labels: str, ids: str = "aabb", times: Any = "0101") -> str:
        return "id,t,x,kind\n" + "".join(f"{i},{t},{v}.5,{label}\n" for i, t, v, label in zip(ids, times, "1243", labels))

    def timed(*times: str) -> str:
        return labelled(*KINDS, times=times)

    plain = {"a": [1.5, 2.5], "b": [4.5, 3.5]}
    ways = "say data.ids=per_file if these are two sequences, or data.ids=global if it is one"
    cases: Dict[str, Any] = {
        f"label {name}": ({"a.csv": labelled(one, one, "up", "up")}, AUTO, Want(plain, None, sorted([one.strip(), "up"]),
                                                                             {"a": one.strip(), "b": "up"}))
        for name, one in (("NA", "NA"), ("None", "None"), ("null", "null"), ("007", "007"), ("with spaces", " calm "),
                          ("of several words", "very calm"), ("beyond ASCII", "größer"), ("true", "true"))}
    cases.update({
        "label empty": ({"a.csv": labelled("", "", "up", "up")}, AUTO, (
            "DIR/a.csv: sequence 'a', column 'kind' must have a value; got None; give it one, or leave its rows out")),
        "label nan": ({"a.csv": labelled("nan", "nan", "up", "up")}, AUTO, (
            "DIR/a.csv: sequence 'a', column 'kind' must have a value; got None; give it one, or leave its rows out")),
        "label in two numbers": ({"a.csv": labelled("1", "1", "1.0", "1.0")}, AUTO, (
            "DIR/a.csv: column 'kind' must write each class in one way; got '1 and 1.0'; write whole numbers without a "
            "fraction in all files")),
        "label changes": ({"a.csv": labelled("up", "down", "up", "up")}, AUTO, (
            "DIR/a.csv: sequence 'a', column 'kind' must be the same in all its rows; got 'down'; correct it or say "
            "data.per_step=true")),
        "labels of steps": ({"a.csv": labelled("up", "", "nan", "down")}, {**AUTO, "per_step": True}, Want(
            plain, None, ["down", "up"], {"a": ["up", None], "b": [None, "down"]})),
        "numbers in order as classes": ({"a.csv": labelled("10", "10", "9", "9")}, AUTO, Want(plain, None, ["9", "10"])),
        "id empty": ({"a.csv": labelled(*KINDS, ids=["a", "a", "", "b"])}, AUTO,  # type: ignore[arg-type]
                     "DIR/a.csv: row 3, column 'id' must name a sequence; got None"),
        "ids of numbers are text": ({"a.csv": labelled(*KINDS, ids=["1", "1", "01", "01"])},  # type: ignore[arg-type]
                                    AUTO, Want({"1": [1.5, 2.5], "01": [4.5, 3.5]})),
        "time out of order": ({"a.csv": timed("5", "-3", "0.5", "0.25")}, AUTO, Want({"a": [2.5, 1.5], "b": [3.5, 4.5]})),
        "time beyond 2**53": ({"a.csv": timed("9007199254740993", "9007199254740992", "0", "1")}, AUTO, Want(
            {"a": [2.5, 1.5], "b": [4.5, 3.5]})),
        "time in dates": ({"a.csv": timed("2024-02-01", "2024-01-31 23:59:59.999999999", "2024-01-01", "2024-01-01T00:01")},
                          AUTO, Want({"a": [2.5, 1.5], "b": [4.5, 3.5]})),
        "time in zones": ({"a.csv": timed("2024-01-01T01:00+02:00", "2024-01-01T00:00Z", "2024-01-01T00:00+00:00",
                                          "2023-12-31T20:00-0500")}, AUTO, Want({"a": [1.5, 2.5], "b": [4.5, 3.5]})),
        "time with a zone and without": ({"a.csv": timed("2024-01-01T01:00+02:00", "2024-01-01", "0", "1")}, AUTO, (
            "DIR/a.csv: row 2, column 't' must hold numbers, or points in time of one kind; got '2024-01-01'; write dates "
            "as 2024-01-31 12:00:00, all with a time zone (+01:00) or none")),
        "time of another country": ({"a.csv": timed("31.01.2024", "01.02.2024", "0", "1")}, AUTO, (
            "DIR/a.csv: row 1, column 't' must hold numbers, or points in time of one kind; got '31.01.2024'; write dates "
            "as 2024-01-31 12:00:00, all with a time zone (+01:00) or none")),
        "time empty": ({"a.csv": timed("0", "", "0", "1")}, AUTO, "DIR/a.csv: row 2, column 't' must have a time; got None"),
        "time twice": ({"a.csv": timed("0", "1", "2", "2")}, AUTO, (
            "DIR/a.csv: sequence 'b', column 't' must not have the same time twice; got 2")),
        "date twice": ({"a.csv": timed("2024-01-01", "2024-01-02", "2024-03-01 12:30", "2024-03-01T12:30:00.0")}, AUTO, (
            "DIR/a.csv: sequence 'b', column 't' must not have the same time twice; got '2024-03-01T12:30:00'")),
        "date in a zone twice": ({"a.csv": timed("2024-01-01T00:00Z", "2024-01-02T00:00Z", "2024-03-01T12:30+01:00",
                                                 "2024-03-01T11:30Z")}, AUTO, (
            "DIR/a.csv: sequence 'b', column 't' must not have the same time twice; got '2024-03-01T11:30:00Z'")),
        "a value missing": ({"a.csv": column(["1", "", "3", "4"])}, {**X, "missing": "error"}, (
            "DIR/a.csv: row 2, column 'x' must be a finite number; got nan; say with data.missing=mean or "
            "data.missing=forward what to put there")),
        "a value infinite": ({"a.csv": column(["1", "-inf", "3", "4"])}, X,
                             "DIR/a.csv: row 2, column 'x' must be a finite number; got -inf"),
        "a value too large": ({"a.csv": column(["1", "1e39", "3", "4"])}, X,
                              "DIR/a.csv: row 2, column 'x' must be finite in 32 bits; got 1e+39"),
        "a target missing": ({"a.csv": labelled("1.5", "1.5", "", "")}, {**AUTO, "label": None, "targets": ["kind"]},
                             "DIR/a.csv: row 3, column 'kind' must be a finite number; got nan"),
        "a target of large numbers": ({"a.csv": labelled("1700000000.25", "1700000000.25", "1700000003", "1700000003")}, {
            **AUTO, "label": None, "targets": ["kind"]}, Want(plain, targets={"a": [1700000000.25], "b": [1700000003.0]})),
        "the same id in two files": ({"1.csv": "id,x\na,1\nb,2\n", "2.csv": "id,x\na,3\n"}, {"sequence": "id"}, (
            "DIR: sequence 'a' must be in one file, where data.time does not say how its parts follow each other; got "
            f"'1.csv and 2.csv'; {ways}")),
        "the same id, per file": ({"1.csv": "id,x\na,1\nb,2\n", "2.csv": "id,x\na,3\n"}, {"sequence": "id", "ids": "per_file"},
                                  Want([[1], [2], [3]], names=["a", "b", "a"])),
        "the same id, global": ({"1.csv": "id,x\na,1\nb,2\n", "2.csv": "id,x\na,3\n"}, {"sequence": "id", "ids": "global"},
                                Want({"a": [1, 3], "b": [2]})),
        "parts by time": ({"1.csv": "id,t,x\na,2,1\nb,0,2\n", "2.csv": "id,t,x\na,1,3\n"}, {"sequence": "id", "time": "t"},
                          Want({"a": [3, 1], "b": [2]})),
        "parts that overlap": ({"1.csv": "id,t,x\na,2,1\na,9,2\n", "2.csv": "id,t,x\na,8,3\n"}, {
            "sequence": "id", "time": "t"}, (
            f"DIR: sequence 'a' must not have parts in two files that overlap in time; got '1.csv (2 to 9) and 2.csv (8 to "
            f"8)'; {ways}")),
        "parts that overlap, in dates": ({
            "1.csv": "id,t,x\na,2024-01-01,1\na,2024-01-03,2\n", "2.csv": "id,t,x\na,2024-01-02,3\n"}, {
            "sequence": "id", "time": "t"}, (
            "DIR: sequence 'a' must not have parts in two files that overlap in time; got '1.csv (2024-01-01T00:00:00 to "
            f"2024-01-03T00:00:00) and 2.csv (2024-01-02T00:00:00 to 2024-01-02T00:00:00)'; {ways}")),
        "parts that overlap, global": ({"1.csv": "id,t,x\na,2,1\na,9,2\n", "2.csv": "id,t,x\na,8,3\n"}, {
            "sequence": "id", "time": "t", "ids": "global"}, Want({"a": [1, 3, 2]})),
    })
    return cases


def _folders() -> Dict[str, Any]:
    """Folders of files, and files that are none of ours."""
    one, two = "id,x\na,1\na,2\n", "id,x\nb,3\nb,5\n"
    both, by_id = {"a": [1, 2], "b": [3, 5]}, {"sequence": "id"}
    kinds = "data=table reads .csv, .tsv, .txt (packed by gzip too: .csv.gz) and .parquet"
    return {
        "two files": ({"1.csv": one, "2.csv": two}, by_id, Want(both)),
        "folders in folders": ({"p/1.csv": one, "q/r/2.csv": two}, by_id, Want(both)),
        "hidden and private files": ({"1.csv": one, "2.csv": two, ".3.csv": "?", "_4.csv": "?", "_old/5.csv": "?",
                                      ".git/6.csv": "?", "._1.csv": b"\0\x05\x16\x07"}, by_id, Want(both)),
        "other files beside": ({"1.csv": one, "2.csv": two, "README.txt": "hello", "plot.png": b"\x89PNG"}, by_id, Want(both)),
        "natural order of files": ({"part10.csv": "id,x\na,3\n", "part9.csv": "id,x\na,1\n"}, {
            "sequence": "id", "ids": "global"}, Want({"a": [1, 3]})),
        "packed beside plain": ({"1.csv": one, "2.csv.gz": gzip.compress(two.encode())}, by_id, Want(both)),
        "columns in another order": ({"1.csv": one, "2.csv": "x,id\n3,b\n5,b\n"}, by_id, Want(both)),
        "other separators": ({"1.csv": one, "2.csv": two.replace(",", ";")}, by_id, Want(both)),
        "a file without rows": ({"1.csv": one, "15.csv": "id,x\n", "2.csv": two}, by_id, Want(both)),
        "an empty file": ({"1.csv": one, "2.csv": ""}, by_id, "DIR/2.csv: file must have a header and rows; got '0 bytes'"),
        "a column in one file only": ({"1.csv": "id,x,z\na,1,1\na,2,1\n", "2.csv": two}, by_id, Want(
            both, ["1 features: x; left out: z (not in 2.csv)"])),
        "a column in one file only, named": ({"1.csv": "id,x,z\na,1,1\na,2,1\n", "2.csv": two}, {**by_id, "features": ["z"]},
                                             "data.features must be a column of DIR/2.csv; got 'z'; it has id, x"),
        "numbers in one file, text in the next": ({"1.csv": "id,x,z\na,1,1\na,2,1\n", "2.csv": "id,x,z\nb,3,?\nb,5,2\n"}, by_id,
                                                  Want(both, ["1 features: x; left out: z (1 of 4 cells is no number, the "
                                                              "first '?' in 2.csv, row 1)"])),
        "nothing in one file, numbers in the next": (
            {"1.csv": "id,x\na,\na,\n", "2.csv": "id,x\nb,3\nb,5\n"}, {**by_id, "missing": "mean"},
            Want({"a": [NAN, NAN], "b": [3, 5]}, ["1 features: x"])),
        "whole numbers first, fractions later": (
            {"1.csv": "id,x\n" + "a,1\n" * 70000 + "a,1.5\n"}, by_id, Want({"a": [1.0] * 70000 + [1.5]})),
        "nothing first, numbers later": ({"1.csv": "id,x,z\n" + "a,1,\n" * 70000 + "a,1.5,2\n"}, {
            **by_id, "features": ["z"], "missing": "mean"}, Want({"a": [NAN] * 70000 + [2.0]})),
        "an odd cell far below": ({"1.csv": "id,x,z\n" + "a,1,2\n" * 70000 + "a,1.5,?\n"}, by_id, Want(
            {"a": [1.0] * 70000 + [1.5]}, ["1 features: x; left out: z (1 of 70001 cells is no number, the first '?' in "
                                           "1.csv, row 70001)"])),
        "an odd cell far below, named": ({"1.csv": "id,x,z\n" + "a,1,2\n" * 70000 + "a,1.5,?\n"}, {**by_id, "features": ["z"]}, (
            "DIR/1.csv: row 70001, column 'z' must hold numbers; got '?'; leave the cell empty if it is missing, or say "
            "data.na_values=['?']")),
        "each file a sequence": ({"walk.csv": "x\n1\n2\n", "run.csv": "x\n3\n"}, {"layout": "long"}, Want(
            {"run.csv": [3], "walk.csv": [1, 2]})),
        "an empty folder": ({"notes.md": "hello"}, by_id,
                            "DIR: files must all be .csv or all be .parquet; got 'an empty folder'"),
        "nothing there": ({}, by_id, "data: path must be an existing CSV or Parquet file, or a folder of such; got "
                          "'DIR/gone'"),
        "a spreadsheet": ({"a.xlsx": b"PK\x03\x04"}, by_id,
                          f"DIR/a.xlsx: file must all be .csv or all be .parquet; got '.xlsx'; {kinds}"),
        "Parquet by another name": ({"a.csv": b"PAR1\x15\x04"}, by_id,
                                    "DIR/a.csv: file must be text; got 'a Parquet file'; name it .parquet"),
        "text by Parquet's name": ({"a.parquet": one}, by_id, (
            "DIR/a.parquet: cannot be read as parquet: Parquet magic bytes not found in footer. Either the file is "
            "corrupted or this is not a parquet file.")),
    }


def _shapes() -> Dict[str, Any]:
    """A row a sequence; one long recording."""
    wide = "kind,t0,t1,t2\nup,1,2,3\ndown,4,5,6\n"
    log = "t,x,act\n" + "".join(f"{t},{t}.5,{'sit' if t < 5 else 'run'}\n" for t in range(10))
    cut = {"window": 4, "time": "t", "label": "act"}
    return {
        "wide": ({"a.csv": wide}, {"layout": "wide", "label": "kind"}, Want(
            [[1, 2, 3], [4, 5, 6]], ["3 features: t0, t1, t2"], ["down", "up"])),
        "wide, columns shuffled": ({"a.csv": "t10,kind,t9,t2\n3,up,2,1\n6,down,5,4\n"}, {"layout": "wide", "label": "kind"},
                                   Want([[1, 2, 3], [4, 5, 6]])),
        "wide of unequal lengths": ({"a.csv": "kind,t0,t1,t2\nup,1,,\ndown,4,5,6\n"}, {"layout": "wide", "label": "kind"},
                                    Want([[1], [4, 5, 6]])),
        "wide with a gap": ({"a.csv": "kind,t0,t1,t2\nup,1,,3\ndown,4,5,6\n"}, {"layout": "wide", "label": "kind"}, (
            "DIR/a.csv: row 1, column 't1' must be a finite number; got nan; say with data.missing=mean or "
            "data.missing=forward what to put there")),
        "wide with a gap, filled": ({"a.csv": "kind,t0,t1,t2\nup,1,,3\ndown,4,5,6\n"}, {
            "layout": "wide", "label": "kind", "missing": "mean"}, Want([[1, NAN, 3], [4, 5, 6]])),
        "wide as UCR has it": ({"a.tsv": "1\t0.5\t1.5\n-1\t2.5\t4.5\n"}, {
            "layout": "wide", "label": "1", "header": False}, Want([[0.5, 1.5], [2.5, 4.5]], ["2 features: 2, 3"],
                                                                ["1", "-1"])),
        "wide with ids": ({"a.csv": "no,kind,t0,t1\n7,up,1,2\n3,down,4,5\n"}, {
            "layout": "wide", "label": "kind", "sequence": "no"}, Want({"7": [1, 2], "3": [4, 5]})),
        "wide with another number": ({"a.csv": "age,kind,t0,t1\n70,up,1,2\n30,down,4,5\n"}, {
            "layout": "wide", "label": "kind"}, Want([[1, 2], [4, 5]], ["2 features: t0, t1; left out: age (no step)"])),
        "wide, without a word": ({"a.csv": wide}, {"label": "kind"}, (
            "data.sequence must name the column that says which rows of DIR/a.csv belong together; got None; or say "
            "data.layout=wide for a row a sequence and a column a step, or data.window=STEPS to cut one long recording; "
            "there are no columns of lists")),
        "an id twice in wide": ({"a.csv": "no,t0,t1\n7,1,2\n7,4,5\n"}, {"layout": "wide", "sequence": "no"}, (
            "DIR/a.csv: column 'no' must name each sequence once; got '7'")),
        "windows by majority": ({"a.csv": log}, cut, Want(
            {"a.csv[0:4]": [0.5, 1.5, 2.5, 3.5], "a.csv[4:8]": [4.5, 5.5, 6.5, 7.5]}, None, ["run", "sit"],
            {"a.csv[0:4]": "sit", "a.csv[4:8]": "run"})),
        "windows with labels of steps": ({"a.csv": log}, {**cut, "per_step": True}, Want(
            None, None, None, {"a.csv[0:4]": ["sit"] * 4, "a.csv[4:8]": ["sit", "run", "run", "run"]})),
        "windows that overlap": ({"a.csv": log}, {**cut, "stride": 3}, Want(
            names=["a.csv[0:4]", "a.csv[3:7]", "a.csv[6:10]"])),
        "windows of equal counts take the first": ({"a.csv": log}, {**cut, "window": 2, "stride": 1, "features": ["x"]},
                                                   Want(targets={"a.csv[4:6]": "sit", "a.csv[5:7]": "run"})),
        "windows of several recordings": ({"a.csv": "id,x\n" + "".join(f"{'ab'[t // 5]},{t}.5\n" for t in range(10))}, {
            "window": 2, "sequence": "id"}, Want(names=["a[0:2]", "a[2:4]", "b[0:2]", "b[2:4]"])),
        "windows longer than the recording": ({"a.csv": log}, {**cut, "window": 11}, (
            "DIR/a.csv: recordings must be as long as data.window=11; got '10 steps at most'; lower data.window")),
        "windows with a target that changes": ({"a.csv": log.replace("sit", "1").replace("run", "2")}, {
            "window": 4, "time": "t", "targets": ["act"]}, (
            "DIR/a.csv: column 'act' must be the same in all steps of a window; got 2.0; or say data.per_step=true")),
    }


TEXT_CASES: Dict[str, Any] = {}
for _table in (_numbers, _marks, _heads, _labels, _folders, _shapes):
    _found = _table()
    assert not set(_found) & set(TEXT_CASES)
    TEXT_CASES.update(_found)

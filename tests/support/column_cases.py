"""Headers, and columns that are no inputs, as people have them; see `file_cases`."""

from typing import Any, Dict

from file_cases import AUTO, Want, column


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
    no_names = (
        "write a line of names above it, or set data.header=false: the columns are then 1, 2, 3, ...; if these "
        "are names, set data.header=true"
    )
    four = "id,t,x,kind,code\n" + "".join(
        f"{'abcd'[i // 2]},{i % 2},{v},{'uv'[i // 2 % 2]},{'73'[i // 2 % 2]}\n"
        for i, v in enumerate((5, 1, 4, 2, 8, 3, 6, 0))
    )
    six = "".join(f"{'abc'[i // 2]},{i % 2},{v},{'uv'[i // 2 % 2]},{i}\n" for i, v in enumerate((5, 1, 4, 2, 8, 3)))
    return {
        "index of pandas, nameless": (
            {"a.csv": front("", "0123")},
            AUTO,
            Want(plain, [kept + "(no name) (index of pandas)"]),
        ),
        "index of pandas, read and written again": (
            {"a.csv": front("Unnamed: 0", "0123")},
            AUTO,
            Want(plain, [kept + "Unnamed: 0 (index of pandas)"]),
        ),
        "index of pandas, named": (
            {"a.csv": front("Unnamed: 0", ["4", "7", "9", "2"])},
            {**AUTO, "features": ["Unnamed: 0"]},
            Want({"a": [4, 7], "b": [9, 2]}),
        ),
        "index reset": (
            {"a.csv": front("index", ["4", "7", "9", "2"])},
            AUTO,
            Want(
                plain,
                [
                    "DIR/a.csv: column 'index' is left out as a row number; to read it, list it in data.features",
                    kept + "index (row number)",
                ],
            ),
        ),
        "row number by its values": (
            {"a.csv": "id,t,x,kind,n\n" + six},
            AUTO,
            Want(
                {"a": [5, 1], "b": [4, 2], "c": [8, 3]},
                [
                    "DIR/a.csv: column 'n' is left out as a row number; to read it, list it in data.features",
                    "1 feature: x; left out: n (row number)",
                ],
            ),
        ),
        "row number, named": (
            {"a.csv": "id,t,x,kind,n\n" + six},
            {**AUTO, "features": ["n"]},
            Want(
                {"a": [0, 1], "b": [2, 3], "c": [4, 5]},
                ["DIR/a.csv: column 'n' is a row number", "1 feature: n; left out: x (not in data.features)"],
            ),
        ),
        "label in numbers": (
            {"a.csv": four},
            AUTO,
            Want(
                {"a": [5, 1], "b": [4, 2], "c": [8, 3], "d": [6, 0]},
                [
                    "DIR/a.csv: column 'code' is left out as a copy of the label; to read it, list it in data.features",
                    "1 feature: x; left out: code (copy of the label)",
                ],
            ),
        ),
        "label in numbers, named": (
            {"a.csv": four},
            {**AUTO, "features": ["code"]},
            Want(
                {"a": [7, 7], "b": [3, 3], "c": [7, 7], "d": [3, 3]},
                [
                    "DIR/a.csv: column 'code' is a copy of the label",
                    "1 feature: code; left out: x (not in data.features)",
                ],
            ),
        ),
        "label at each step in numbers": (
            {"a.csv": four},
            {**AUTO, "per_step": True},
            Want(
                None,
                [
                    "DIR/a.csv: column 'code' is left out as a copy of the label; to read it, list it in data.features",
                    "1 feature: x; left out: code (copy of the label)",
                ],
            ),
        ),
        "number of the sequence": (
            {"a.csv": back("no", "1100")},
            {**AUTO, "label": None},
            Want(
                plain,
                [
                    "DIR/a.csv: column 'no' is left out as a copy of the sequence's number; to read it, list it in "
                    "data.features",
                    kept + "kind (text), no (copy of the sequence's number)",
                ],
            ),
        ),
        "a constant of each sequence is no copy": (
            {"a.csv": back("weight", ["61.5", "61.5", "80.25", "80.25"])},
            {**AUTO, "label": None},
            Want({"a": [[61.5, 1, 1.5], [61.5, 2, 2.5]], "b": [[80.25, 5, 3.5], [80.25, 4, 4.5]]}),
        ),
        "copy of a target": (
            {"a.csv": "id,x,z,kind\na,5,2,0.5\nb,1,6,1.5\nc,7,4,1\n"},
            {"sequence": "id", "targets": ["kind"]},
            Want(
                {"a": [5], "b": [1], "c": [7]},
                [
                    "DIR/a.csv: column 'z' is left out as a copy of kind; to read it, list it in data.features",
                    "1 feature: x; left out: z (copy of kind)",
                ],
            ),
        ),
        "only copies": (
            {
                "a.csv": "".join(
                    ",".join(cell for i, cell in enumerate(line.split(",")) if i != 2) + "\n"
                    for line in four.splitlines()
                )
            },
            AUTO,
            (
                "DIR/a.csv: features must be more than copies of what is known; got 'code (copy of the "
                "label)'; list in "
                "data.features what to read, e.g. data.features=[code]"
            ),
        ),
        "an empty column": ({"a.csv": back("gap", ["", "", "", ""])}, AUTO, Want(plain, [kept + "gap (empty)"])),
        "an empty column, named": (
            {"a.csv": back("gap", ["", "", "", ""])},
            {**AUTO, "features": ["gap"]},
            (
                "DIR/a.csv: column 'gap' must have a value somewhere; got 'only empty cells'; leave it out of "
                "data.features"
            ),
        ),
        "a comma too many at every end": (
            {"a.csv": back("", ["", "", "", ""])},
            AUTO,
            Want(plain, [kept + "(no name) (empty (column 6 has no name))"]),
        ),
        "dates": (
            {"a.csv": back("day", ["2024-01-01"] * 4)},
            AUTO,
            Want(plain, [kept + "day (dates, such as '2024-01-01')"]),
        ),
        "names with spaces around": ({"a.csv": body.replace("id,t,x,y,kind", "id , t, x ,y, kind")}, AUTO, Want(plain)),
        "names beyond ASCII": (
            {"a.csv": body.replace("x,y", "größe,温度")},
            {**AUTO, "features": ["温度"]},
            Want({"a": [1.5, 2.5], "b": [3.5, 4.5]}),
        ),
        "two columns of one name": (
            {"a.csv": body.replace("x,y", "x,x")},
            AUTO,
            ("DIR/a.csv: columns must have different names; got 'x'; it is that of columns 3 and 4"),
        ),
        "order by names and not by the file": (
            {"a.csv": body.replace("x,y", "x10,x2")},
            AUTO,
            Want({"a": [[1.5, 1], [2.5, 2]], "b": [[3.5, 5], [4.5, 4]]}, ["2 features: x2, x10"]),
        ),
        "no header": (
            {"a.csv": headless},
            {"features": None, "window": 2},
            (f"DIR/a.csv: first line must name the columns; got ['a', '0', '1', '1.5', 'up']; {no_names}"),
        ),
        "no header, columns named": (
            {"a.csv": headless},
            AUTO,
            (f"DIR/a.csv: first line must name the columns; got ['a', '0', '1', '1.5', 'up']; {no_names}"),
        ),
        "no header, one number beside texts": (
            {"a.csv": "a,up,1.5\na,up,2.5\nb,up,3.5\n"},
            {"window": 1},
            f"DIR/a.csv: first line must name the columns; got ['a', 'up', '1.5']; {no_names}",
        ),
        "no header, two numbers that rise": (
            {"a.csv": "x,0,1.5\ny,1,2.5\n"},
            {"window": 1},
            f"DIR/a.csv: first line must name the columns; got ['x', '0', '1.5']; {no_names}",
        ),
        "no header, numbers as if counted, a text again": (
            {"a.csv": "a,1,2,up\na,2,7,up\nb,1,9,down\n"},
            {"window": 1},
            f"DIR/a.csv: first line must name the columns; got ['a', '1', '2', 'up']; {no_names}",
        ),
        "names that count": ({"a.csv": "id,0,1\na,5,6\na,7,8\n"}, {"sequence": "id"}, Want({"a": [[5, 6], [7, 8]]})),
        "no header, said": (
            {"a.csv": headless},
            {"sequence": "1", "time": "2", "label": "5", "header": False},
            Want(plain, ["2 features: 3, 4"], ["down", "up"]),
        ),
        "numbers as names, said": (
            {"a.csv": "0.5,7,id\n1,2,a\n3,4,a\n"},
            {"sequence": "id", "header": True},
            Want({"a": [[1, 2], [3, 4]]}),
        ),
        "an unknown column": (
            {"a.csv": body},
            {**AUTO, "label": "kinds"},
            "data.label must be a column of DIR/a.csv; got 'kinds'; did you mean 'kind'?",
        ),
        "no numbers at all": (
            {"a.csv": "id,t,kind,note\na,0,up,so\nb,0,down,so\n"},
            AUTO,
            (
                "data.features must name columns of DIR/a.csv, which has no column of numbers left; got None; left "
                "out: note "
                "(text)"
            ),
        ),
        "only a header": ({"a.csv": "id,t,x,kind\n"}, AUTO, "DIR/a.csv: rows must be at least one; got 0"),
        "nothing": ({"a.csv": ""}, AUTO, "DIR/a.csv: file must have a header and rows; got '0 bytes'"),
        "only empty lines": (
            {"a.csv": "\n\n  \n"},
            AUTO,
            "DIR/a.csv: file must have a header and rows; got 'only empty lines'",
        ),
    }


COLUMN_CASES: Dict[str, Any] = _heads()

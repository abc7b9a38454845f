"""Text files in encodings, packings and shapes as people have them; see `file_cases`."""

import gzip
from typing import Any, Dict

from file_cases import AUTO, Want, X, column


def _texts() -> Dict[str, Any]:
    cases: Dict[str, Any] = {}
    plain = {"a": [1.5, 2.5], "b": [3.5, 4.5]}
    text = column(["1.5", "2.5", "3.5", "4.5"]).replace("up", "größer")
    says = "DIR/a.csv is not UTF-8 and was read as cp1252; set data.encoding"
    rest = "1 feature: x; left out: y (not in data.features)"
    for name, data, lines in (
        ("UTF-8", text.encode(), [rest]),
        ("UTF-8 with a mark", text.encode("utf-8-sig"), [rest]),
        ("UTF-16", text.encode("utf-16"), [rest]),
        ("UTF-16 big", b"\xfe\xff" + text.encode("utf-16-be"), [rest]),
        ("latin-1", text.encode("latin-1"), [says, rest]),
    ):
        cases[f"encoding {name}"] = ({"a.csv": data}, X, Want(plain, lines, ["down", "größer"]))
    cases.update(
        {
            "encoding said": (
                {"a.csv": text.encode("cp437")},
                {**X, "encoding": "cp437"},
                Want(plain, [rest], ["down", "größer"]),
            ),
            "encoding unknown": (
                {"a.csv": text},
                {**X, "encoding": "utf-99"},
                "data.encoding must be an encoding that Python knows; got 'utf-99'",
            ),
            "encoding said wrong": (
                {"a.csv": text.encode("latin-1")},
                {**X, "encoding": "utf-8"},
                "DIR/a.csv: cannot be read as csv: 'utf-8' codec can't decode byte 0xf6 in position 28: "
                "invalid start byte; set data.encoding",
            ),
            "UTF-16 without a mark": (
                {"a.csv": text.encode("utf-16-le")},
                X,
                (
                    "DIR/a.csv: file must be text; got 'a byte of zero'; set data.encoding=utf-16-le if it is UTF-16 "
                    "without a byte order "
                    "mark"
                ),
            ),
            "UTF-16 without a mark, said": (
                {"a.csv": text.encode("utf-16-le")},
                {**X, "encoding": "utf-16-le"},
                Want(plain),
            ),
            "packed": ({"a.csv.gz": gzip.compress(text.encode())}, X, Want(plain)),
            "packed, cut short": (
                {"a.csv.gz": gzip.compress(text.encode())[:-12]},
                X,
                (
                    "DIR/a.csv.gz: cannot be read as csv: Compressed file ended before the end-of-stream "
                    "marker was reached"
                ),
            ),
            "packed, by the name only": (
                {"a.csv.gz": text.encode()},
                X,
                Want(plain),
            ),
            "packed, with another name": ({"a.csv": gzip.compress(text.encode())}, X, Want(plain)),
            "packed in another way": (
                {"a.csv": b"PK\x03\x04" + bytes(40)},
                X,
                "DIR/a.csv: file must be text; got 'a zip archive, as workbooks of Excel are'; unpack it, or save the "
                "sheet as CSV",
            ),
            "UTF-32": ({"a.csv": text.encode("utf-32")}, X, Want(plain)),
            "JSON": (
                {"a.csv": '[{"id":"a","t":0}]'},
                X,
                "DIR/a.csv: cannot be read as csv: ',' expected after '\"'",
            ),
            "a name of two lines": (
                {"a.csv": text.replace("id,t,x,y", 'id,t,x,"y\n(m/s)"')},
                {**AUTO, "features": ["y\n(m/s)"]},
                Want({"a": [1.5, 2.5], "b": [3.5, 4.5]}),
            ),
            "lines of Windows": ({"a.csv": text.replace("\n", "\r\n")}, X, Want(plain)),
            "lines of old Macs": ({"a.csv": text.replace("\n", "\r")}, X, Want(plain)),
            "empty lines": ({"a.csv": text.replace("\n", "\n\n") + "\n\n"}, X, Want(plain)),
            "no end of the last line": ({"a.csv": text.rstrip("\n")}, X, Want(plain)),
            "a line break in quotes": (
                {"a.csv": 'id,t,x,kind,note\na,0,1.5,up,"two\nlines"\na,1,2.5,up,\nb,0,3.5,down,\nb,1,4.5,down,\n'},
                X,
                Want(plain),
            ),
            "a quote that is not closed": (
                {"a.csv": text + 'b,2,"5.5,1,down\n'},
                X,
                "DIR/a.csv: cannot be read as csv: unexpected end of data",
            ),
            "a row too long": (
                {"a.csv": text + "b,2,5.5,1,down,6\n"},
                X,
                (
                    "DIR/a.csv: row 5 must have 5 cells, as the header has; got 6; correct it, or set "
                    "data.separator, which is "
                    "taken to be ','"
                ),
            ),
            "a row too short": (
                {"a.csv": text + "b,2\n"},
                X,
                (
                    "DIR/a.csv: row 5 must have 5 cells, as the header has; got 2; correct it, or set "
                    "data.separator, which is "
                    "taken to be ','"
                ),
            ),
        }
    )
    return cases


TEXT_FILE_CASES: Dict[str, Any] = _texts()

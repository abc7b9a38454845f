"""Parquet files as people have them, and what must come of each; see `file_cases`. A file is made by a function of
pyarrow, so that the list can be read without it."""

import datetime
import decimal
import json
from typing import Any, Dict

from file_cases import NAN, Want

IDS = ["a", "a", "b", "b"]


def table(**columns: Any) -> Any:
    """A function of pyarrow that makes a table; a column is a list, or a function that makes an array."""

    def made(pa: Any) -> Any:
        return pa.table(
            {name: column(pa) if callable(column) else pa.array(column) for name, column in columns.items()}
        )

    return made


def typed(values: Any, kind: Any) -> Any:
    """A column of a type, which ``kind`` makes of pyarrow."""
    return lambda pa: pa.array(values, kind(pa))


def _indexed(pa: Any) -> Any:
    """As pandas writes a frame whose index has a name."""
    made = table(id=IDS, x=[1.0, 2.0, 3.0, 4.0], day=[1, 2, 3, 4])(pa)
    return made.replace_schema_metadata({b"pandas": json.dumps({"index_columns": ["day"]}).encode()})


def _numbers() -> Dict[str, Any]:
    one = [1, 2, 3, 4]
    kinds = {
        "int8": lambda pa: pa.int8(),
        "uint64": lambda pa: pa.uint64(),
        "float": lambda pa: pa.float32(),
        "double": lambda pa: pa.float64(),
        "half": lambda pa: pa.float16(),
        "decimal": lambda pa: pa.decimal128(9, 2),
        "large decimal": lambda pa: pa.decimal256(40, 2),
    }
    cases: Dict[str, Any] = {}
    for name, kind in kinds.items():
        values: Any = [decimal.Decimal(v) for v in one] if "decimal" in name else one
        if name == "half":

            def column(pa: Any) -> Any:
                import numpy

                return pa.array(numpy.array(one, dtype=numpy.float16))
        else:
            column = typed(values, kind)
        cases[f"numbers of {name}"] = (
            {"a.parquet": table(id=IDS, x=column)},
            {"sequence": "id"},
            Want({"a": [1, 2], "b": [3, 4]}, ["1 feature: x"]),
        )
    cases.update(
        {
            "decimals are the nearest": (
                {
                    "a.parquet": table(
                        id=IDS,
                        x=typed(
                            [decimal.Decimal(v) for v in ("0.1", "0.2", "0.3", "9007199254740993.1")],
                            lambda pa: pa.decimal128(18, 1),
                        ),
                    )
                },
                {"sequence": "id"},
                Want({"a": [0.1, 0.2], "b": [0.3, 9007199254740993.1]}),
            ),
            "numbers beyond 2**53": (
                {"a.parquet": table(id=IDS, x=[2**53 + 1, 2**60, 1, 2])},
                {"sequence": "id"},
                Want({"a": [2.0**53, 2.0**60], "b": [1, 2]}),
            ),
            "booleans": (
                {"a.parquet": table(id=IDS, x=[True, False, None, True])},
                {"sequence": "id", "missing": "mean"},
                Want({"a": [1, 0], "b": [NAN, 1]}),
            ),
            "nulls and NaN are missing": (
                {"a.parquet": table(id=IDS, x=[1.0, None, NAN, 4.0])},
                {"sequence": "id", "missing": "mean"},
                Want({"a": [1, NAN], "b": [NAN, 4]}),
            ),
            "whole numbers with a null": (
                {"a.parquet": table(id=IDS, x=[1, None, 3, 4])},
                {"sequence": "id"},
                (
                    "DIR/a.parquet: row 2, column 'x' must be a finite number; got nan; set data.missing=mean or "
                    "data.missing=forward to replace it"
                ),
            ),
            "numbers in a dictionary": (
                {"a.parquet": table(id=IDS, x=lambda pa: pa.array([5, 6, 5, 6]).dictionary_encode())},
                {"sequence": "id"},
                Want({"a": [5, 6], "b": [5, 6]}),
            ),
            "whole numbers in one file, others in the next": (
                {"1.parquet": table(id=["a", "a"], x=[1, 2]), "2.parquet": table(id=["b", "b"], x=[3.5, 4.5])},
                {"sequence": "id"},
                Want({"a": [1, 2], "b": [3.5, 4.5]}, ["1 feature: x"]),
            ),
            "decimals in one file, floats in the next": (
                {
                    "1.parquet": table(id=["a"], x=[decimal.Decimal("1.25")]),
                    "2.parquet": table(id=["b"], x=typed([2.5], lambda pa: pa.float32())),
                },
                {"sequence": "id"},
                Want({"a": [1.25], "b": [2.5]}),
            ),
            "nothing in one file, numbers in the next": (
                {
                    "1.parquet": table(id=["a"], x=typed([None], lambda pa: pa.null())),
                    "2.parquet": table(id=["b"], x=[3]),
                },
                {"sequence": "id", "missing": "mean"},
                Want({"a": [NAN], "b": [3]}, ["1 feature: x"]),
            ),
            "text in the next file": (
                {"1.parquet": table(id=["a"], x=[1], y=[1]), "2.parquet": table(id=["b"], x=[3], y=["?"])},
                {"sequence": "id"},
                Want({"a": [1], "b": [3]}, ["1 feature: x; left out: y (int64 in 1.parquet, string in 2.parquet)"]),
            ),
            "text in the next file, named": (
                {"1.parquet": table(id=["a"], x=[1], y=[1]), "2.parquet": table(id=["b"], x=[3], y=["?"])},
                {"sequence": "id", "features": ["y"]},
                "DIR: column 'y' must hold numbers of one kind; got 'int64 in 1.parquet, string in 2.parquet'",
            ),
            "numbers as text, named": (
                {"a.parquet": table(id=IDS, x=["1", " 2.5", None, "4"])},
                {"sequence": "id", "features": ["x"], "missing": "mean"},
                Want({"a": [1, 2.5], "b": [NAN, 4]}),
            ),
            "odd text, named": (
                {"a.parquet": table(id=IDS, x=["1", "2", "3", "5%"])},
                {"sequence": "id", "features": ["x"]},
                ("DIR/a.parquet: row 4, column 'x' must hold numbers; got '5%'; write it without the sign"),
            ),
            "columns that are not numbers": (
                {
                    "a.parquet": table(
                        id=IDS,
                        x=[1, 2, 5, 4],
                        note=["p"] * 4,
                        day=[datetime.date(2024, 1, 1)] * 4,
                        span=[datetime.timedelta(1)] * 4,
                        point=[{"q": 1}] * 4,
                        bag=[[1.0]] * 4,
                        none=typed([None] * 4, lambda pa: pa.null()),
                    )
                },
                {"sequence": "id"},
                Want(
                    {"a": [1, 2], "b": [5, 4]},
                    [
                        "1 feature: x; left out: note (text), day (dates), span (spans of time), point "
                        "(struct<q: int64>), bag "
                        "(lists), none (empty)"
                    ],
                ),
            ),
            "a date, named": (
                {"a.parquet": table(id=IDS, x=[datetime.date(2024, 1, 1)] * 4)},
                {"sequence": "id", "features": ["x"]},
                "DIR/a.parquet: column 'x' must hold numbers; got 'date32[day]'",
            ),
            "index of pandas": (
                {"a.parquet": table(id=IDS, x=[1.0, 2.0, 3.0, 4.0], __index_level_0__=[4, 3, 2, 1])},
                {"sequence": "id"},
                Want({"a": [1, 2], "b": [3, 4]}, ["1 feature: x; left out: __index_level_0__ (index of pandas)"]),
            ),
            "index of pandas with a name": (
                {"a.parquet": _indexed},
                {"sequence": "id"},
                Want({"a": [1, 2], "b": [3, 4]}, ["1 feature: x; left out: day (index of pandas)"]),
            ),
            "index of pandas as time": (
                {"a.parquet": _indexed},
                {"sequence": "id", "time": "day"},
                Want({"a": [1, 2], "b": [3, 4]}, ["1 feature: x"]),
            ),
        }
    )
    return cases


PARQUET_CASES: Dict[str, Any] = _numbers()

"""Labels, times and lists of Parquet files; see `parquet_cases`."""

import datetime
import decimal
from typing import Any, Dict

from file_cases import NAN, Want
from parquet_cases import IDS, table, typed


def _parts() -> Dict[str, Any]:
    x = [1.0, 2.0, 4.0, 3.0]

    def stamped(*times: Any, unit: str = "us", zone: Any = None) -> Any:
        return table(id=IDS, t=typed(list(times), lambda pa: pa.timestamp(unit, zone)), x=x)

    def day(n: int) -> Any:
        return datetime.datetime(2024, 1, n)

    by_time = {"sequence": "id", "time": "t"}
    classes = {"sequence": "id", "label": "kind"}
    plain = {"a": [1, 2], "b": [4, 3]}
    cases: Dict[str, Any] = {
        f"label of {name}": (
            {"a.parquet": table(id=IDS, x=x, kind=kind)},
            classes,
            Want(plain, None, found, {"a": first, "b": next(name for name in found if name != first)}),
        )
        for name, kind, found, first in (
            ("whole numbers", [10, 10, 9, 9], ["9", "10"], "10"),
            ("whole numbers with a gap somewhere", [10.0, 10.0, 9.0, 9.0], ["9", "10"], "10"),
            ("fractions", [0.5, 0.5, 1.0, 1.0], ["1", "0.5"], "0.5"),
            ("booleans", [True, True, False, False], ["false", "true"], "true"),
            ("categories", lambda pa: pa.array(["p", "p", "q", "q"]).dictionary_encode(), ["p", "q"], "p"),
            ("large text", typed(["p", "p", "q", "q"], lambda pa: pa.large_string()), ["p", "q"], "p"),
            ("bytes", [b"p", b"p", b"q", b"q"], ["p", "q"], "p"),
            ("the word None", ["None", "None", "q", "q"], ["None", "q"], "None"),
        )
    }
    cases.update(
        {
            "a label of null": (
                {"a.parquet": table(id=IDS, x=x, kind=["p", "p", None, None])},
                classes,
                (
                    "DIR/a.parquet: sequence 'b', column 'kind' must have a value; got None; give it one, or "
                    "leave its rows out"
                ),
            ),
            "a label of NaN": (
                {"a.parquet": table(id=IDS, x=x, kind=[1.0, 1.0, NAN, NAN])},
                classes,
                (
                    "DIR/a.parquet: sequence 'b', column 'kind' must have a value; got None; give it one, or "
                    "leave its rows out"
                ),
            ),
            "a label of dates": (
                {"a.parquet": table(id=IDS, x=x, kind=[[1], [1], [2], [2]])},
                classes,
                ("DIR/a.parquet: column 'kind' must hold text or whole numbers; got 'list<element: int64>'"),
            ),
            "ids of numbers": (
                {"a.parquet": table(id=[7, 7, 2, 2], x=x)},
                {"sequence": "id"},
                Want({"7": [1, 2], "2": [4, 3]}),
            ),
            "an id of null": (
                {"a.parquet": table(id=["a", "a", None, "b"], x=x)},
                {"sequence": "id"},
                "DIR/a.parquet: row 3, column 'id' must name a sequence; got None",
            ),
            "times in seconds": (
                {"a.parquet": stamped(2, 1, 0, 5, unit="s")},
                by_time,
                Want({"a": [2, 1], "b": [4, 3]}),
            ),
            "times a nanosecond apart": (
                {"a.parquet": stamped(1700000000000000001, 1700000000000000000, 0, 5, unit="ns")},
                by_time,
                Want({"a": [2, 1], "b": [4, 3]}),
            ),
            "times in a zone": (
                {"a.parquet": stamped(2, 1, 0, 5, zone="Europe/Paris")},
                by_time,
                Want({"a": [2, 1], "b": [4, 3]}),
            ),
            "times of days": (
                {"a.parquet": table(id=IDS, t=[day(2).date(), day(1).date(), day(3).date(), day(4).date()], x=x)},
                by_time,
                Want({"a": [2, 1], "b": [4, 3]}),
            ),
            "times of the clock": (
                {
                    "a.parquet": table(
                        id=IDS, t=[datetime.time(2), datetime.time(1), datetime.time(3), datetime.time(4)], x=x
                    )
                },
                by_time,
                Want({"a": [2, 1], "b": [4, 3]}),
            ),
            "times as spans": (
                {"a.parquet": table(id=IDS, t=[datetime.timedelta(0, n) for n in (2, 1, 3, 4)], x=x)},
                by_time,
                Want({"a": [2, 1], "b": [4, 3]}),
            ),
            "times beyond 2**53": (
                {"a.parquet": table(id=IDS, t=[2**53 + 1, 2**53, 0, 1], x=x)},
                by_time,
                Want({"a": [2, 1], "b": [4, 3]}),
            ),
            "times as text": (
                {"a.parquet": table(id=IDS, t=["2024-01-02", "2024-01-01", "2024-01-01", "2024-01-02"], x=x)},
                by_time,
                Want({"a": [2, 1], "b": [4, 3]}),
            ),
            "a date twice": (
                {"a.parquet": stamped(0, 1, 86400_000_000, 86400_000_000)},
                by_time,
                (
                    "DIR/a.parquet: sequence 'b', column 't' must not have the same time twice; got "
                    "'1970-01-02T00:00:00'"
                ),
            ),
            "a time of null": (
                {"a.parquet": stamped(0, None, 1, 2)},
                by_time,
                "DIR/a.parquet: row 2, column 't' must have a time; got None",
            ),
            "dates in one file, numbers in the next": (
                {"1.parquet": table(id=["a"], t=[day(1)], x=[1.0]), "2.parquet": table(id=["b"], t=[1], x=[2.0])},
                by_time,
                ("DIR: column 't' must hold times of one kind; got 'dates without a time zone and whole numbers'"),
            ),
            "units that differ between files": (
                {
                    "1.parquet": table(id=["a"], t=typed([2], lambda pa: pa.timestamp("s")), x=[1.0]),
                    "2.parquet": table(id=["a"], t=typed([1], lambda pa: pa.timestamp("us")), x=[2.0]),
                },
                by_time,
                Want({"a": [2, 1]}),
            ),
            "targets of large whole numbers": (
                {"a.parquet": table(id=IDS, x=x, y=[1700000000] * 2 + [1700000003] * 2)},
                {"sequence": "id", "targets": ["y"]},
                Want(plain, targets={"a": [1700000000.0], "b": [1700000003.0]}),
            ),
        }
    )
    return cases


def _lists() -> Dict[str, Any]:
    x, kind = [[1.0, 2.0], [3.0]], ["p", "q"]
    flat = [[1, 2], [3]]
    cases: Dict[str, Any] = {
        f"lists of {name}": (
            {"a.parquet": table(x=column, kind=kind)},
            {"label": "kind"},
            Want(flat, ["1 feature: x"], ["p", "q"]),
        )
        for name, column in (
            ("doubles", x),
            ("whole numbers", [[1, 2], [3]]),
            ("large lists", typed(x, lambda pa: pa.large_list(pa.float32()))),
            ("decimals", [[decimal.Decimal(1), decimal.Decimal(2)], [decimal.Decimal(3)]]),
        )
    }
    cases.update(
        {
            "lists of fixed size": (
                {"a.parquet": table(x=typed([[1, 2], [3, 4]], lambda pa: pa.list_(pa.float32(), 2)))},
                {},
                Want([[1, 2], [3, 4]]),
            ),
            "lists with a null inside": (
                {"a.parquet": table(x=[[1.0, None], [3.0]])},
                {"missing": "mean"},
                Want([[1, NAN], [3]]),
            ),
            "lists with a null inside, not said": (
                {"a.parquet": table(x=[[1.0], [2.0, None]])},
                {},
                (
                    "DIR/a.parquet: row 2, column 'x' must be a finite number; got nan; set data.missing=mean or "
                    "data.missing=forward to replace it"
                ),
            ),
            "lists with an id": (
                {"a.parquet": table(x=x, no=["n9", "n1"])},
                {"layout": "lists", "sequence": "no"},
                Want({"n9": [1, 2], "n1": [3]}),
            ),
            "lists with an id twice": (
                {"a.parquet": table(x=x, no=["n1", "n1"])},
                {"layout": "lists", "sequence": "no"},
                ("DIR/a.parquet: column 'no' must name each sequence once; got 'n1'"),
            ),
            "lists of unequal lengths": (
                {"a.parquet": table(x=x, y=[[1.0, 2.0], [3.0, 4.0]])},
                {},
                ("DIR/a.parquet: row 2, column 'y' must have 1 steps as 'x' has; got 2"),
            ),
            "lists beside other columns": (
                {"a.parquet": table(x=x, age=[7, 8], words=[["p"], ["q"]], grid=[[[1.0]], [[2.0]]], note=["p", "q"])},
                {},
                Want(
                    flat,
                    [
                        "1 feature: x; left out: age (one value a row), words "
                        "(lists of text), grid (lists of list<element: double>), "
                        "note (text)"
                    ],
                ),
            ),
            "lists of text, named": (
                {"a.parquet": table(x=[["1"], ["2"]])},
                {"features": ["x"]},
                "DIR/a.parquet: column 'x' must hold lists of numbers; got 'string'",
            ),
            "lists with labels of steps": (
                {"a.parquet": table(x=x, kind=[["p", None], ["q"]], no=["1", "2"])},
                {"label": "kind", "per_step": True, "layout": "lists", "sequence": "no"},
                Want({"1": [1, 2], "2": [3]}, None, ["p", "q"], {"1": ["p", None], "2": ["q"]}),
            ),
            "lists with too few labels": (
                {"a.parquet": table(x=x, kind=[["p"], ["q"]])},
                {"label": "kind", "per_step": True},
                (
                    "DIR/a.parquet: row 1, column 'kind' must be lists as long as those of the features; got "
                    "'1 labels for 2 "
                    "steps'"
                ),
            ),
            "numbers where lists should be": (
                {"a.parquet": table(x=[1.0, 2.0], kind=kind)},
                {"label": "kind"},
                (
                    "data.sequence must name the column that says which rows of DIR/a.parquet belong "
                    "together; got None; or set "
                    "data.layout=wide for one row a sequence and one column a step, or data.window=STEPS to cut "
                    "one long recording; "
                    "there are no columns of lists"
                ),
            ),
            "a row a sequence, a column a step": (
                {"a.parquet": table(t1=[1.0, 3.0], t0=[2.0, None], kind=kind)},
                {"layout": "wide", "label": "kind", "missing": "mean"},
                Want([[2, 1], [NAN, 3]]),
            ),
        }
    )
    return cases


PARQUET_PART_CASES: Dict[str, Any] = {**_parts(), **_lists()}

"""Labels, ids and times as people have them; see `file_cases`."""

from typing import Any, Dict

from file_cases import AUTO, KINDS, Want, X, column


def _labels() -> Dict[str, Any]:
    """Labels, ids and times."""

    def labelled(*labels: str, ids: str = "aabb", times: Any = "0101") -> str:
        return "id,t,x,kind\n" + "".join(
            f"{i},{t},{v}.5,{label}\n" for i, t, v, label in zip(ids, times, "1243", labels)
        )

    def timed(*times: str) -> str:
        return labelled(*KINDS, times=times)

    plain = {"a": [1.5, 2.5], "b": [4.5, 3.5]}
    ways = "set data.ids=per_file if these are two sequences, or data.ids=global if it is one"
    cases: Dict[str, Any] = {
        f"label {name}": (
            {"a.csv": labelled(one, one, "up", "up")},
            AUTO,
            Want(plain, None, sorted([one.strip(), "up"]), {"a": one.strip(), "b": "up"}),
        )
        for name, one in (
            ("NA", "NA"),
            ("None", "None"),
            ("null", "null"),
            ("007", "007"),
            ("with spaces", " calm "),
            ("of several words", "very calm"),
            ("beyond ASCII", "größer"),
            ("true", "true"),
        )
    }
    cases.update(
        {
            f"label {name}": (
                {"a.csv": labelled(one, one, other, other)},
                AUTO,
                Want(plain, None, sorted([first, second]), {"a": first, "b": second}),
            )
            for name, one, other, first, second in (
                ("True of pandas", "True", "False", "true", "false"),
                ("TRUE of R", "TRUE", "FALSE", "true", "false"),
                ("whole numbers written as fractions", "2.0", "1.0", "2", "1"),
                ("numbers that are names", "1.00x", "01.0", "1.00x", "01.0"),
            )
        }
    )
    cases.update(
        {
            "label empty": (
                {"a.csv": labelled("", "", "up", "up")},
                AUTO,
                (
                    "DIR/a.csv: sequence 'a', column 'kind' must have a value; got None; give it one, or "
                    "leave its rows out"
                ),
            ),
            "label nan": (
                {"a.csv": labelled("nan", "nan", "up", "up")},
                AUTO,
                (
                    "DIR/a.csv: sequence 'a', column 'kind' must have a value; got None; give it one, or "
                    "leave its rows out"
                ),
            ),
            "label in two numbers": (
                {"a.csv": labelled("1", "1", "1.0", "1.0")},
                AUTO,
                (
                    "DIR/a.csv: column 'kind' must write each name in one way; got '1 and 1.0'; write whole "
                    "numbers without a "
                    "fraction in all files"
                ),
            ),
            "label changes": (
                {"a.csv": labelled("up", "down", "up", "up")},
                AUTO,
                (
                    "DIR/a.csv: sequence 'a', column 'kind' must be the same in all its rows; got 'down'; "
                    "correct it or set "
                    "data.per_step=true"
                ),
            ),
            "labels of steps": (
                {"a.csv": labelled("up", "", "nan", "down")},
                {**AUTO, "per_step": True},
                Want(plain, None, ["down", "up"], {"a": ["up", None], "b": [None, "down"]}),
            ),
            "numbers in order as classes": (
                {"a.csv": labelled("10", "10", "9", "9")},
                AUTO,
                Want(plain, None, ["9", "10"]),
            ),
            "id empty": (
                {"a.csv": labelled(*KINDS, ids=["a", "a", "", "b"])},
                AUTO,  # type: ignore[arg-type]
                "DIR/a.csv: row 3, column 'id' must name a sequence; got None",
            ),
            "ids of numbers are text": (
                {"a.csv": labelled(*KINDS, ids=["1", "1", "01", "01"])},  # type: ignore[arg-type]
                AUTO,
                Want({"1": [1.5, 2.5], "01": [4.5, 3.5]}),
            ),
            "time out of order": (
                {"a.csv": timed("5", "-3", "0.5", "0.25")},
                AUTO,
                Want({"a": [2.5, 1.5], "b": [3.5, 4.5]}),
            ),
            "time beyond 2**53": (
                {"a.csv": timed("9007199254740993", "9007199254740992", "0", "1")},
                AUTO,
                Want({"a": [2.5, 1.5], "b": [4.5, 3.5]}),
            ),
            "time in dates": (
                {"a.csv": timed("2024-02-01", "2024-01-31 23:59:59.999999999", "2024-01-01", "2024-01-01T00:01")},
                AUTO,
                Want({"a": [2.5, 1.5], "b": [4.5, 3.5]}),
            ),
            "time in zones": (
                {
                    "a.csv": timed(
                        "2024-01-01T01:00+02:00", "2024-01-01T00:00Z", "2024-01-01T00:00+00:00", "2023-12-31T20:00-0500"
                    )
                },
                AUTO,
                Want({"a": [1.5, 2.5], "b": [4.5, 3.5]}),
            ),
            "time with a zone and without": (
                {"a.csv": timed("2024-01-01T01:00+02:00", "2024-01-01", "0", "1")},
                AUTO,
                (
                    "DIR/a.csv: row 2, column 't' must hold numbers, or points in time of one kind; got "
                    "'2024-01-01'; write dates "
                    "as 2024-01-31 12:00:00, all with a time zone (+01:00) or none"
                ),
            ),
            "time of another country": (
                {"a.csv": timed("31.01.2024", "01.02.2024", "0", "1")},
                AUTO,
                (
                    "DIR/a.csv: row 1, column 't' must hold numbers, or points in time of one kind; got "
                    "'31.01.2024'; write dates "
                    "as 2024-01-31 12:00:00, all with a time zone (+01:00) or none"
                ),
            ),
            "time with a comma of either kind": (
            {"a.csv": timed('"1,500"', '"2,500"', "0", "1")},
            AUTO,
            "DIR/a.csv: column 't' must hold numbers of one kind; got \"numbers such as '1,500', whose "
            "comma may separate thousands: set data.decimal=comma or data.thousands=comma\"",
        ),
        "a target with a comma of either kind": (
            {"a.csv": labelled('"1,500"', '"1,500"', '"2,250"', '"2,250"')},
            {**AUTO, "label": None, "targets": ["kind"]},
            "DIR/a.csv: column 'kind' must hold numbers of one kind; got \"numbers such as '1,500', whose "
            "comma may separate thousands: set data.decimal=comma or data.thousands=comma\"",
        ),
        "ids in two numbers": (
            {"a.csv": labelled(*KINDS, ids=["1", "1", "1.0", "1.0"])},  # type: ignore[arg-type]
            AUTO,
            "DIR/a.csv: column 'id' must write each name in one way; got '1 and 1.0'; write whole numbers without a "
            "fraction in all files",
        ),
        "time empty": (
                {"a.csv": timed("0", "", "0", "1")},
                AUTO,
                "DIR/a.csv: row 2, column 't' must have a time; got None",
            ),
            "time twice": (
                {"a.csv": timed("0", "1", "2", "2")},
                AUTO,
                ("DIR/a.csv: sequence 'b', column 't' must not have the same time twice; got 2"),
            ),
            "date twice": (
                {"a.csv": timed("2024-01-01", "2024-01-02", "2024-03-01 12:30", "2024-03-01T12:30:00.0")},
                AUTO,
                ("DIR/a.csv: sequence 'b', column 't' must not have the same time twice; got '2024-03-01T12:30:00'"),
            ),
            "date in a zone twice": (
                {
                    "a.csv": timed(
                        "2024-01-01T00:00Z", "2024-01-02T00:00Z", "2024-03-01T12:30+01:00", "2024-03-01T11:30Z"
                    )
                },
                AUTO,
                ("DIR/a.csv: sequence 'b', column 't' must not have the same time twice; got '2024-03-01T11:30:00Z'"),
            ),
            "a value missing": (
                {"a.csv": column(["1", "", "3", "4"])},
                {**X, "missing": "error"},
                (
                    "DIR/a.csv: row 2, column 'x' must be a finite number; got nan; set data.missing=mean or "
                    "data.missing=forward to replace it"
                ),
            ),
            "a value infinite": (
                {"a.csv": column(["1", "-inf", "3", "4"])},
                X,
                "DIR/a.csv: row 2, column 'x' must be a finite number; got -inf; correct it, or leave the column "
                "out of data.features",
            ),
            "a value too large": (
                {"a.csv": column(["1", "1e39", "3", "4"])},
                X,
                "DIR/a.csv: row 2, column 'x' must be finite in 32 bits; got 1e+39; correct it, or leave the "
                "column out of data.features",
            ),
            "a target missing": (
                {"a.csv": labelled("1.5", "1.5", "", "")},
                {**AUTO, "label": None, "targets": ["kind"]},
                "DIR/a.csv: row 3, column 'kind' must have a value; got None; give it one, or leave the sequence out",
            ),
            "a target of large numbers": (
                {"a.csv": labelled("1700000000.25", "1700000000.25", "1700000003", "1700000003")},
                {**AUTO, "label": None, "targets": ["kind"]},
                Want(plain, targets={"a": [1700000000.25], "b": [1700000003.0]}),
            ),
            "the same id in two files": (
                {"1.csv": "id,x\na,1\nb,2\n", "2.csv": "id,x\na,3\n"},
                {"sequence": "id"},
                (
                    "DIR: sequence 'a' must be in one file, where data.time does not say how its parts follow "
                    "each other; got "
                    f"'1.csv and 2.csv'; {ways}"
                ),
            ),
            "the same id, per file": (
                {"1.csv": "id,x\na,1\nb,2\n", "2.csv": "id,x\na,3\n"},
                {"sequence": "id", "ids": "per_file"},
                Want([[1], [2], [3]], names=["a", "b", "a"]),
            ),
            "the same id, global": (
                {"1.csv": "id,x\na,1\nb,2\n", "2.csv": "id,x\na,3\n"},
                {"sequence": "id", "ids": "global"},
                Want({"a": [1, 3], "b": [2]}),
            ),
            "parts by time": (
                {"1.csv": "id,t,x\na,2,1\nb,0,2\n", "2.csv": "id,t,x\na,1,3\n"},
                {"sequence": "id", "time": "t"},
                Want({"a": [3, 1], "b": [2]}),
            ),
            "parts that overlap": (
                {"1.csv": "id,t,x\na,2,1\na,9,2\n", "2.csv": "id,t,x\na,8,3\n"},
                {"sequence": "id", "time": "t"},
                (
                    f"DIR: sequence 'a' must not have parts in two files that overlap in time; got '1.csv (2 "
                    f"to 9) and 2.csv (8 to "
                    f"8)'; {ways}"
                ),
            ),
            "parts that overlap, in dates": (
                {"1.csv": "id,t,x\na,2024-01-01,1\na,2024-01-03,2\n", "2.csv": "id,t,x\na,2024-01-02,3\n"},
                {"sequence": "id", "time": "t"},
                (
                    "DIR: sequence 'a' must not have parts in two files that overlap in time; got '1.csv "
                    "(2024-01-01T00:00:00 to "
                    f"2024-01-03T00:00:00) and 2.csv (2024-01-02T00:00:00 to 2024-01-02T00:00:00)'; {ways}"
                ),
            ),
            "parts that overlap, global": (
                {"1.csv": "id,t,x\na,2,1\na,9,2\n", "2.csv": "id,t,x\na,8,3\n"},
                {"sequence": "id", "time": "t", "ids": "global"},
                Want({"a": [1, 3, 2]}),
            ),
        }
    )
    return cases


LABEL_CASES: Dict[str, Any] = _labels()

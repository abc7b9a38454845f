"""Tables whose folders name columns, as Hive, Spark, pandas and pyarrow write them; see `file_cases`."""

from typing import Any, Dict

from file_cases import NAN, Want

_BODY = "t,x\n0,{a}\n1,{b}\n"
_TWO = {"subject=2/part-0.csv": _BODY.format(a=3, b=5), "subject=10/part-0.csv": _BODY.format(a=1, b=2)}
_LEFT = "1 feature: x; left out: subject (in the names of the folders)"

HIVE_CASES: Dict[str, Any] = {
    "folders name the sequence": (
        _TWO, {"sequence": "subject", "time": "t"},
        Want({"2": [3, 5], "10": [1, 2]}, ["1 feature: x"], None, None, ["2", "10"])),
    "folders name a class": (
        {"kind=up%20hill/a.csv": _BODY.format(a=3, b=5), "kind=NA/b.csv": _BODY.format(a=1, b=2)},
        {"layout": "long", "time": "t", "label": "kind"},
        Want({"kind=up%20hill/a.csv": [3, 5], "kind=NA/b.csv": [1, 2]}, None, ["NA", "up hill"],
             {"kind=up%20hill/a.csv": "up hill", "kind=NA/b.csv": "NA"})),
    "folders name a target": (
        {"y=0.5/a.csv": "x\n1\n2\n", "y=1.5/a.csv": "x\n3\n4\n"}, {"layout": "long", "targets": ["y"]},
        Want({"y=0.5/a.csv": [1, 2], "y=1.5/a.csv": [3, 4]}, ["1 feature: x"], None,
             {"y=0.5/a.csv": [0.5], "y=1.5/a.csv": [1.5]})),
    "folders name a time": (
        {"day=2024-01-02/a.csv": "id,x\na,2\n", "day=2024-01-01/a.csv": "id,x\na,1\n"},
        {"sequence": "id", "time": "day"}, Want({"a": [1, 2]})),
    "folders are no inputs": (_TWO, {"layout": "long", "time": "t"}, Want(None, [_LEFT])),
    "folders are inputs where they are named": (
        _TWO, {"layout": "long", "time": "t", "features": ["x", "subject"]},
        Want({"subject=2/part-0.csv": [[3, 2], [5, 2]], "subject=10/part-0.csv": [[1, 10], [2, 10]]})),
    "folders of a row a sequence": (
        {"split=a/1.csv": "t0,t1\n1,2\n", "split=b/1.csv": "t0,t1\n3,4\n"}, {"layout": "wide"},
        Want([[1, 2], [3, 4]], ["1 channel, 2 steps: t0, t1; left out: split (in the names of the folders)"])),
    "only the folder's column is asked for": (
        {"s=1/a.csv": "x\n1\n", "s=2/a.csv": "x\n2\n"}, {"sequence": "s"}, Want({"1": [1], "2": [2]})),
    "two folders": (
        {"a=1/b=u/x.csv": "x\n1\n", "a=1/b=v/x.csv": "x\n2\n", "a=2/b=u/x.csv": "x\n3\n"},
        {"sequence": "a", "ids": "global", "label": "b", "per_step": True},
        Want({"1": [1, 2], "2": [3]}, ["1 feature: x"], ["u", "v"], {"1": ["u", "v"], "2": ["u"]})),
    "a folder without a value": (
        {"v=1.5/a.csv": "x\n1\n", "v=__HIVE_DEFAULT_PARTITION__/b.csv": "x\n2\n"},
        {"layout": "long", "features": ["v"], "missing": "mean"},
        Want({"v=1.5/a.csv": [1.5], "v=__HIVE_DEFAULT_PARTITION__/b.csv": [NAN]})),
    "a folder without an id": (
        {"s=1/a.csv": "x\n1\n", "s=__HIVE_DEFAULT_PARTITION__/b.csv": "x\n2\n"}, {"sequence": "s"},
        "DIR/s=__HIVE_DEFAULT_PARTITION__/b.csv: row 1, column 's' must name a sequence; got None"),
    "a column in the file and in the folder": (
        {"s=1/a.csv": "s,x\n1,1\n", "s=2/a.csv": "s,x\n2,1\n"}, {"sequence": "s"},
        "DIR/s=1/a.csv: column 's' must stand in the file or in the name of its folder, not in both; got 's=1'; rename "
        "the folders, or the column"),
    "folders of two kinds": (
        {"s=1/a.csv": "x\n1\n", "b.csv": "x\n2\n"}, {"layout": "long"},
        "DIR: folders must name the same columns for all files (column=value); got 'none in b.csv and s in s=1/a.csv'; "
        "put the files into folders of one kind"),
    "a text in the folders where numbers must be": (
        {"v=1.5/a.csv": "x\n1\n", "v=low/b.csv": "x\n2\n"}, {"layout": "long", "features": ["v"]},
        "DIR/v=low/b.csv: row 1, column 'v' must hold numbers; got 'low'; correct it, or leave the column out of "
        "data.features"),
    "no column of a folder or file": (
        _TWO, {"sequence": "subjekt"},
        "data.sequence must be a column of DIR/subject=2/part-0.csv; got 'subjekt'; did you mean 'subject'?"),
}

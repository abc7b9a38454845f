"""Folders of files, a row a sequence, one long recording; see `file_cases`."""

import gzip
from typing import Any, Dict

from file_cases import NAN, Want


def _folders() -> Dict[str, Any]:
    """Folders of files, and files that are none of ours."""
    one, two = "id,x\na,1\na,2\n", "id,x\nb,3\nb,5\n"
    both, by_id = {"a": [1, 2], "b": [3, 5]}, {"sequence": "id"}
    kinds = "data=table reads .csv, .tsv, .txt (packed by gzip too: .csv.gz) and .parquet"
    return {
        "two files": ({"1.csv": one, "2.csv": two}, by_id, Want(both)),
        "folders in folders": ({"p/1.csv": one, "q/r/2.csv": two}, by_id, Want(both)),
        "hidden and private files": (
            {
                "1.csv": one,
                "2.csv": two,
                ".3.csv": "?",
                "_4.csv": "?",
                "_old/5.csv": "?",
                ".git/6.csv": "?",
                "._1.csv": b"\0\x05\x16\x07",
            },
            by_id,
            Want(both),
        ),
        "other files beside": (
            {"1.csv": one, "2.csv": two, "README.txt": "hello", "plot.png": b"\x89PNG"},
            by_id,
            Want(both),
        ),
        "natural order of files": (
            {"part10.csv": "id,x\na,3\n", "part9.csv": "id,x\na,1\n"},
            {"sequence": "id", "ids": "global"},
            Want({"a": [1, 3]}),
        ),
        "packed beside plain": ({"1.csv": one, "2.csv.gz": gzip.compress(two.encode())}, by_id, Want(both)),
        "columns in another order": ({"1.csv": one, "2.csv": "x,id\n3,b\n5,b\n"}, by_id, Want(both)),
        "other separators": ({"1.csv": one, "2.csv": two.replace(",", ";")}, by_id, Want(both)),
        "a file without rows": ({"1.csv": one, "15.csv": "id,x\n", "2.csv": two}, by_id, Want(both)),
        "an empty file": (
            {"1.csv": one, "2.csv": ""},
            by_id,
            "DIR/2.csv: file must have a header and rows; got '0 bytes'",
        ),
        "a column in one file only": (
            {"1.csv": "id,x,z\na,1,1\na,2,1\n", "2.csv": two},
            by_id,
            Want(both, ["1 feature: x; left out: z (not in 2.csv)"]),
        ),
        "a column in one file only, named": (
            {"1.csv": "id,x,z\na,1,1\na,2,1\n", "2.csv": two},
            {**by_id, "features": ["z"]},
            "data.features must be a column of DIR/2.csv; got 'z'; it has id, x",
        ),
        "numbers in one file, text in the next": (
            {"1.csv": "id,x,z\na,1,1\na,2,1\n", "2.csv": "id,x,z\nb,3,?\nb,5,2\n"},
            by_id,
            Want(both, ["1 feature: x; left out: z (1 of 4 cells is not a number, the first '?' in 2.csv, row 1)"]),
        ),
        "nothing in one file, numbers in the next": (
            {"1.csv": "id,x\na,\na,\n", "2.csv": "id,x\nb,3\nb,5\n"},
            {**by_id, "missing": "mean"},
            Want({"a": [NAN, NAN], "b": [3, 5]}, ["1 feature: x"]),
        ),
        "whole numbers first, fractions later": (
            {"1.csv": "id,x\n" + "a,1\n" * 3000 + "a,1.5\n"},
            by_id,
            Want({"a": [1.0] * 3000 + [1.5]}),
        ),
        "nothing first, numbers later": (
            {"1.csv": "id,x,z\n" + "a,1,\n" * 3000 + "a,1.5,2\n"},
            {**by_id, "features": ["z"], "missing": "mean"},
            Want({"a": [NAN] * 3000 + [2.0]}),
        ),
        "an odd cell far below": (
            {"1.csv": "id,x,z\n" + "a,1,2\n" * 3000 + "a,1.5,?\n"},
            by_id,
            Want(
                {"a": [1.0] * 3000 + [1.5]},
                ["1 feature: x; left out: z (1 of 3001 cells is not a number, the first '?' in 1.csv, row 3001)"],
            ),
        ),
        "an odd cell far below, named": (
            {"1.csv": "id,x,z\n" + "a,1,2\n" * 3000 + "a,1.5,?\n"},
            {**by_id, "features": ["z"]},
            (
                "DIR/1.csv: row 3001, column 'z' must hold numbers; got '?'; leave the cell empty if it is "
                "missing, or set "
                "data.na_values=['?']"
            ),
        ),
        "each file a sequence": (
            {"walk.csv": "x\n1\n2\n", "run.csv": "x\n3\n"},
            {"layout": "long"},
            Want({"run.csv": [3], "walk.csv": [1, 2]}),
        ),
        "an empty folder": (
            {"notes.md": "hello"},
            by_id,
            "DIR: files must all be .csv or all be .parquet; got 'an empty folder'",
        ),
        "nothing there": (
            {},
            by_id,
            "data: path must be an existing CSV or Parquet file, or a folder of them; got 'DIR/gone'",
        ),
        "a spreadsheet": (
            {"a.xlsx": b"PK\x03\x04"},
            by_id,
            f"DIR/a.xlsx: file must be CSV or Parquet, by its name; got '.xlsx'; {kinds}",
        ),
        "Parquet by another name": (
            {"a.csv": b"PAR1\x15\x04"},
            by_id,
            "DIR/a.csv: file must be text; got 'a Parquet file'; name it .parquet",
        ),
        "text by Parquet's name": (
            {"a.parquet": one},
            by_id,
            (
                "DIR/a.parquet: cannot be read as parquet: Parquet magic bytes not found in footer. Either the file is "
                "corrupted or this is not a parquet file."
            ),
        ),
    }


def _shapes() -> Dict[str, Any]:
    """A row a sequence; one long recording."""
    wide = "kind,t0,t1,t2\nup,1,2,3\ndown,4,5,6\n"
    log = "t,x,act\n" + "".join(f"{t},{t}.5,{'sit' if t < 5 else 'run'}\n" for t in range(10))
    cut = {"window": 4, "time": "t", "label": "act"}
    return {
        "wide": (
            {"a.csv": wide},
            {"layout": "wide", "label": "kind"},
            Want([[1, 2, 3], [4, 5, 6]], ["1 channel, 3 steps: t0, t1, t2"], ["down", "up"]),
        ),
        "wide, columns shuffled": (
            {"a.csv": "t10,kind,t9,t2\n3,up,2,1\n6,down,5,4\n"},
            {"layout": "wide", "label": "kind"},
            Want([[1, 2, 3], [4, 5, 6]]),
        ),
        "wide of unequal lengths": (
            {"a.csv": "kind,t0,t1,t2\nup,1,,\ndown,4,5,6\n"},
            {"layout": "wide", "label": "kind"},
            Want([[1], [4, 5, 6]]),
        ),
        "wide with a gap": (
            {"a.csv": "kind,t0,t1,t2\nup,1,,3\ndown,4,5,6\n"},
            {"layout": "wide", "label": "kind"},
            (
                "DIR/a.csv: row 1, column 't1' must be a finite number; got nan; set data.missing=mean or "
                "data.missing=forward to replace it"
            ),
        ),
        "wide with a gap, filled": (
            {"a.csv": "kind,t0,t1,t2\nup,1,,3\ndown,4,5,6\n"},
            {"layout": "wide", "label": "kind", "missing": "mean"},
            Want([[1, NAN, 3], [4, 5, 6]]),
        ),
        "wide as UCR has it": (
            {"a.tsv": "1\t0.5\t1.5\n-1\t2.5\t4.5\n"},
            {"layout": "wide", "label": "1", "header": False},
            Want([[0.5, 1.5], [2.5, 4.5]], ["1 channel, 2 steps: 2, 3"], ["1", "-1"]),
        ),
        "wide with ids": (
            {"a.csv": "no,kind,t0,t1\n7,up,1,2\n3,down,4,5\n"},
            {"layout": "wide", "label": "kind", "sequence": "no"},
            Want({"7": [1, 2], "3": [4, 5]}),
        ),
        "wide of two series": (
            {"a.csv": "kind,x_0,x_1,y_0,y_1\nup,1,2,3,4\ndown,4,5,6,7\n"},
            {"layout": "wide", "label": "kind"},
            "data.features must name the steps of DIR/a.csv, which has several series of numbered columns; got None; "
            "they begin with 'x_', 'y_'; a row is one series: for several channels use one row a step, or lists",
        ),
        "wide of two series, one named": (
            {"a.csv": "kind,x_0,x_1,y_0,y_1\nup,1,2,3,4\ndown,4,5,6,7\n"},
            {"layout": "wide", "label": "kind", "features": ["y_0", "y_1"]},
            Want([[3, 4], [6, 7]]),
        ),
        "wide with another number": (
            {"a.csv": "age,kind,t0,t1\n70,up,1,2\n30,down,4,5\n"},
            {"layout": "wide", "label": "kind"},
            Want([[1, 2], [4, 5]], ["1 channel, 2 steps: t0, t1; left out: age (no step)"]),
        ),
        "wide, without a word": (
            {"a.csv": wide},
            {"label": "kind"},
            (
                "data.sequence must name the column that says which rows of DIR/a.csv belong together; got "
                "None; or set "
                "data.layout=wide for one row a sequence and one column a step, or data.window=STEPS to cut one "
                "long recording; "
                "there are no columns of lists"
            ),
        ),
        "an id twice in wide": (
            {"a.csv": "no,t0,t1\n7,1,2\n7,4,5\n"},
            {"layout": "wide", "sequence": "no"},
            ("DIR/a.csv: column 'no' must name each sequence once; got '7'"),
        ),
        "windows by majority": (
            {"a.csv": log},
            cut,
            Want(
                {"a.csv[0:4]": [0.5, 1.5, 2.5, 3.5], "a.csv[4:8]": [4.5, 5.5, 6.5, 7.5]},
                None,
                ["run", "sit"],
                {"a.csv[0:4]": "sit", "a.csv[4:8]": "run"},
            ),
        ),
        "windows with labels of steps": (
            {"a.csv": log},
            {**cut, "per_step": True},
            Want(None, None, None, {"a.csv[0:4]": ["sit"] * 4, "a.csv[4:8]": ["sit", "run", "run", "run"]}),
        ),
        "windows that overlap": (
            {"a.csv": log},
            {**cut, "stride": 3},
            Want(names=["a.csv[0:4]", "a.csv[3:7]", "a.csv[6:10]"]),
        ),
        "windows of equal counts take the first": (
            {"a.csv": log},
            {**cut, "window": 2, "stride": 1, "features": ["x"]},
            Want(targets={"a.csv[4:6]": "sit", "a.csv[5:7]": "run"}),
        ),
        "windows of several recordings": (
            {"a.csv": "id,x\n" + "".join(f"{'ab'[t // 5]},{t}.5\n" for t in range(10))},
            {"window": 2, "sequence": "id"},
            Want(names=["a[0:2]", "a[2:4]", "b[0:2]", "b[2:4]"]),
        ),
        "windows longer than the recording": (
            {"a.csv": log},
            {**cut, "window": 11},
            ("DIR/a.csv: recordings must be as long as data.window=11; got '10 steps at most'; lower data.window"),
        ),
        "windows with a target that changes": (
            {"a.csv": log.replace("sit", "1").replace("run", "2")},
            {"window": 4, "time": "t", "targets": ["act"]},
            ("DIR/a.csv: column 'act' must be the same in all steps of a window; got 2.0; or set data.per_step=true"),
        ),
    }


FOLDER_CASES: Dict[str, Any] = {**_folders(), **_shapes()}

"""`.ts` files as people have them, and what must come of each; see `file_cases`."""

import gzip
from typing import Any, Dict

from file_cases import NAN, Want

HEAD = "@problemName P\n@timeStamps false\n@univariate false\n@dimensions 2\n@classLabel true up down\n@data\n"
ROWS = "1,2:3,4:up\n5:6:down\n"
FOUND = Want([[[1, 3], [2, 4]], [[5, 6]]], classes=["up", "down"], targets=["up", "down"])
FLAT = "@univariate true\n@classLabel true up down\n@data\n1,2:up\n3:down\n"
_READ = "must be in the .ts format; got "
_INSTEAD = "take the archive's .ts file of the same name, or write it as a table (data=table)"
_STAMPS = "write the values alone, in order, or use a table with data.time"

#: ``(text or bytes, settings, want)``; with ``bare`` among the settings, labels are not needed.
TS_CASES: Dict[str, Any] = {
    "plain": (HEAD + ROWS, {}, FOUND),
    "comments of both kinds, indented": ("# one\n  % two\n\t# three\n" + HEAD + " # four\n" + ROWS, {}, FOUND),
    "a mark of UTF-8": (("\ufeff" + HEAD + ROWS).encode(), {}, FOUND),
    "a comment in another encoding": ("# Universität\n".encode("cp1252") + (HEAD + ROWS).encode(), {}, FOUND),
    "control characters in a comment": ("# a\x0b b\x0c c\x1c d\x85 e\u2028 f\n" + HEAD + ROWS, {}, FOUND),
    "lines of Windows": ((HEAD + ROWS).replace("\n", "\r\n"), {}, FOUND),
    "lines of old Macs": ((HEAD + ROWS).replace("\n", "\r"), {}, FOUND),
    "keys in capitals": (
        HEAD.replace("@timeStamps false", "@TIMESTAMPS FALSE").replace("@data", "@DATA") + ROWS,
        {},
        FOUND,
    ),
    "spaces around labels": (HEAD + "1,2:3,4: up \n5:6:\tdown\n", {}, FOUND),
    "labels as pandas writes them": (
        HEAD.replace("up down", "True False") + "1,2:3,4:True\n5:6:FALSE\n",
        {},
        Want([[[1, 3], [2, 4]], [[5, 6]]], None, ["true", "false"], targets=["true", "false"]),
    ),
    "spaces in a line": (HEAD + "  1, 2 : 3,4:up\n5:6:down\n", {}, FOUND),
    "empty lines": (HEAD.replace("\n", "\n\n") + "\n1,2:3,4:up\n\n5:6:down\n\n", {}, FOUND),
    "one channel": (FLAT, {}, Want([[1, 2], [3]])),
    "large numbers are exact": (
        FLAT.replace("1,2:", "1700000000.25,1700000003:"),
        {},
        Want([[1700000000.25, 1700000003.0], [3]]),
    ),
    "missing values": (HEAD + "1,?:NaN,4:up\n5:6:down\n", {"missing": "mean"}, Want([[[1, NAN], [NAN, 4]], [[5, 6]]])),
    "a missing channel": (HEAD + "1,2:?:up\n5:6:down\n", {"missing": "mean"}, Want([[[1, NAN], [2, NAN]], [[5, 6]]])),
    "an empty channel": (HEAD + "1,2::up\n5:6:down\n", {"missing": "mean"}, Want([[[1, NAN], [2, NAN]], [[5, 6]]])),
    "a missing channel, not said": (
        HEAD + "1,2:?:up\n",
        {},
        (
            "DIR/a.ts, line 7, channel 2: step 1 must be a finite number; got '?'; set data.missing=mean or "
            "data.missing=forward to replace it"
        ),
    ),
    "numbers to predict": (
        HEAD.replace("@classLabel true up down", "@targetLabel true") + "1,2:3,4:1700000000.25\n5:6:-2\n",
        {},
        Want([[[1, 3], [2, 4]], [[5, 6]]], targets=[[1700000000.25], [-2.0]]),
    ),
    "without labels": (
        HEAD.replace("true up down", "false") + "1,2:3,4\n5:6\n",
        {"bare": True},
        Want([[[1, 3], [2, 4]], [[5, 6]]]),
    ),
    "without the key": (
        HEAD.replace("@classLabel true up down\n", "") + "1,2:3,4\n5:6\n",
        {"bare": True},
        Want([[[1, 3], [2, 4]], [[5, 6]]]),
    ),
    "labels of ?": (
        HEAD + "1,2:3,4:?\n5:6:down\n",
        {"bare": True},
        Want([[[1, 3], [2, 4]], [[5, 6]]], targets=[None, "down"]),
    ),
    "labels of ?, needed": (
        HEAD + "1,2:3,4:?\n",
        {},
        (
            "DIR/a.ts, line 7: label after the last ':' must be one of up, down; got '?'; a row without a label is for "
            "job=encode and job=predict"
        ),
    ),
    "an unknown label": (
        HEAD + "1,2:3,4:left\n",
        {},
        ("DIR/a.ts, line 7: label after the last ':' must be one of up, down; got 'left'"),
    ),
    "time stamps said": (
        HEAD.replace("@timeStamps false", "@timeStamps true") + ROWS,
        {},
        (f"DIR/a.ts: @timeStamps must be false: time stamps are not read; got 'true'; {_STAMPS}"),
    ),
    "time stamps said, numbers to predict": (
        "@timestamps True\n@targetLabel true\n@data\n(0,1),(1,2):3\n",
        {},
        (f"DIR/a.ts: @timeStamps must be false: time stamps are not read; got 'True'; {_STAMPS}"),
    ),
    "time stamps not said": (
        HEAD + "(0,1),(1,2):(0,3),(1,4):up\n",
        {},
        (
            "DIR/a.ts, line 7: steps must be numbers: time stamps, (time, value), are not read; got "
            f"'(0,1),(1,2):(0,3),(1,4):up'; {_STAMPS}"
        ),
    ),
    "text in the data": (
        HEAD + "1,x:3,4:up\n",
        {},
        "DIR/a.ts, line 7, channel 1: step 2 must be a finite number; got 'x'",
    ),
    "Python's underscore": (
        HEAD + "1,1_0:3,4:up\n",
        {},
        ("DIR/a.ts, line 7, channel 1: step 2 must be a finite number; got '1_0'"),
    ),
    "channels of unequal lengths": (
        HEAD + "1,2:3:up\n",
        {},
        ("DIR/a.ts, line 7: channels must have the same number of steps; got [1, 2]"),
    ),
    "a channel too many": (HEAD + "1:2:3:up\n", {}, "DIR/a.ts, line 7: number of channels must be 2; got 3"),
    "no @data": ("@problemName P\n", {}, "DIR/a.ts: header must end with a line '@data'; got '2 lines without it'"),
    "no rows": (HEAD, {}, "DIR/a.ts: @data must be followed by at least one sequence; got 0"),
    "bytes that are no text": (
        HEAD.encode() + b"1,2:3\xff:up\n",
        {},
        ("DIR/a.ts: cannot be read as text: line 7 must be UTF-8; got b'1,2:3\\xff:up'"),
    ),
    "a class named twice": (
        HEAD.replace("up down", "up down up") + ROWS,
        {},
        "DIR/a.ts: @classLabel must name each class once; got 'up'",
    ),
    "packed by gzip": (gzip.compress((HEAD + ROWS).encode()), {"name": "a.ts.gz"}, FOUND),
    "packed by gzip, cut off": (
        gzip.compress((HEAD + ROWS).encode())[:-9],
        {"name": "a.ts.gz"},
        "DIR/a.ts.gz: cannot be unpacked by gzip: Compressed file ended before the end-of-stream marker was reached",
    ),
    "ARFF by its name": (
        "@relation r\n@data\n1,up\n",
        {"name": "a.arff"},
        (f"DIR/a.arff: file {_READ}'ARFF (Weka)'; {_INSTEAD}"),
    ),
    "TSF by its name": (
        "@relation r\n@data\n",
        {"name": "a.tsf"},
        (f"DIR/a.tsf: file {_READ}'TSF (Monash forecasting archive)'; {_INSTEAD}"),
    ),
    "ARFF by another name": (
        "@relation r\n@attribute att0 numeric\n@data\n1,up\n",
        {},
        (f"DIR/a.ts, line 2: file {_READ}'ARFF (Weka)'; {_INSTEAD}"),
    ),
    "TSF by another name": (
        "@relation r\n@attribute series_name string\n@data\n",
        {},
        (f"DIR/a.ts, line 2: file {_READ}'TSF (Monash forecasting archive)'; {_INSTEAD}"),
    ),
}

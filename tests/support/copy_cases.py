"""Columns that tell the label, the sequence or the target, in every layout; see `file_cases`.

Each case is made for a table of rows (CSV and Parquet) or of lists (Parquet): what is left out, and what is said."""

from typing import Any, Dict, List

from file_cases import Want

KINDS = ["u", "v", "u", "v", "u", "v"]
VALUES = [[5.5, 1.25], [4.0, 2.0], [8.0, 3.5], [6.25, 0.5], [7.0, 2.75], [1.0, 9.5]]


def _says(column: str, why: str, rest: str, named: bool = False) -> List[str]:
    if named:
        return [f"DIR: column {column!r} is a {why}", rest]
    return [f"DIR: column {column!r} is left out as a {why}; to read it, list it in data.features",
            f"{rest}; left out: {column} ({why})"]


def _long(code: List[float], name: str) -> Dict[str, List[Any]]:
    """Two steps of each sequence; the twin is one a sequence."""
    twice = [i for i in range(6) for _ in range(2)]
    return {"id": [f"s{i}" for i in twice], "x": [v for pair in VALUES for v in pair],
            "kind": [KINDS[i] for i in twice], name: [code[i] for i in twice]}


def _wide(code: List[float], name: str) -> Dict[str, List[Any]]:
    return {"kind": KINDS, "low": [pair[0] for pair in VALUES], name: code, "high": [pair[1] for pair in VALUES]}


def _lists(code: List[float], name: str) -> Dict[str, List[Any]]:
    return {"kind": KINDS, "x": VALUES, name: [[value] * 2 for value in code]}


TWINS = [0.5, -3.0] * 3
ROWS: Dict[str, Any] = {}
"""``(columns, settings, want)`` by name; columns are lists."""
LISTS: Dict[str, Any] = {}
for _named in (False, True):
    _word = ", named" if _named else ""
    ROWS["label's twin, long" + _word] = (
        _long(TWINS, "code"), {"sequence": "id", "label": "kind", **({"features": ["x", "code"]} if _named else {})},
        Want(None, _says("code", "copy of the label", "2 features: x, code" if _named else "1 feature: x", _named)))
    ROWS["label's twin, wide" + _word] = (
        _wide(TWINS, "code"),
        {"layout": "wide", "label": "kind", **({"features": ["low", "code", "high"]} if _named else {})},
        Want([[v[0], c, v[1]] if _named else v for v, c in zip(VALUES, TWINS)],
             _says("code", "copy of the label", "1 channel, 3 steps: low, code, high" if _named else
                   "1 channel, 2 steps: low, high", _named)))
    LISTS["label's twin" + _word] = (
        _lists(TWINS, "code"), {"label": "kind", **({"features": ["x", "code"]} if _named else {})},
        Want([[[x, c] for x in v] if _named else v for v, c in zip(VALUES, TWINS)],
             _says("code", "copy of the label", "2 features: x, code" if _named else "1 feature: x", _named)))
ROWS["row number, wide"] = (
    _wide([3.0, 1.0, 2.0, 4.0, 6.0, 5.0], "no"), {"layout": "wide", "label": "kind"},
    Want(VALUES, _says("no", "row number", "1 channel, 2 steps: low, high")))
ROWS["copy of a target, wide"] = (
    {**_wide([2.0, 5.0, 1.0, 7.0, 3.0, 9.0], "twin"), "kind": [4.5, 10.5, 2.5, 14.5, 6.5, 18.5]},
    {"layout": "wide", "targets": ["kind"]},
    Want(VALUES, _says("twin", "copy of kind", "1 channel, 2 steps: low, high")))
ROWS["a step that is no copy, wide"] = (
    _wide([0.5, -3.0, 0.5, -3.0, 0.5, 0.5], "code"), {"layout": "wide", "label": "kind"},
    Want([[v[0], c, v[1]] for v, c in zip(VALUES, [0.5, -3.0, 0.5, -3.0, 0.5, 0.5])],
         ["1 channel, 3 steps: low, code, high"]))
LISTS["sequence's number"] = (
    _lists([0.0, 1.0, 2.0, 3.0, 4.0, 5.0], "no"), {"label": "kind"},
    Want(VALUES, _says("no", "copy of the sequence's number", "1 feature: x")))
LISTS["row number"] = (
    {"kind": KINDS, "x": VALUES, "index": [[2.0 * i, 2.0 * i + 1] for i in range(6)]}, {"label": "kind"},
    Want(VALUES, _says("index", "row number", "1 feature: x")))
LISTS["copy of a target"] = (
    {**_lists([2.0, 5.0, 1.0, 7.0, 3.0, 9.0], "twin"), "kind": [4.5, 10.5, 2.5, 14.5, 6.5, 18.5]},
    {"targets": ["kind"]}, Want(VALUES, _says("twin", "copy of kind", "1 feature: x")))
LISTS["label's twin at each step"] = (
    {"x": VALUES, "kind": [["u", "v"]] * 6, "code": [[0.5, -3.0]] * 6}, {"label": "kind", "per_step": True},
    Want(VALUES, _says("code", "copy of the label", "1 feature: x")))
LISTS["target's twin at each step"] = (
    {"x": VALUES, "y": [[1.0, 4.0]] * 3 + [[9.0, 2.0]] * 3, "code": [[2.0, 8.0]] * 3 + [[18.0, 4.0]] * 3},
    {"targets": ["y"], "per_step": True}, Want(VALUES, _says("code", "copy of y", "1 feature: x")))
LISTS["no copy"] = (
    {"kind": KINDS, "x": VALUES, "z": [[1.0, 1.0], [2.0, 2.0]] * 2 + [[1.0, 2.0]] * 2}, {"label": "kind"},
    Want([[[x, z] for x, z in zip(v, w)] for v, w in
          zip(VALUES, [[1.0, 1.0], [2.0, 2.0]] * 2 + [[1.0, 2.0]] * 2)], ["2 features: x, z"]))

"""CSV by Python alone and by pyarrow: the same numbers, the same kinds of columns, the same words."""

import random

import numpy as np
import pytest

from app.data.tables import delimited, open_table
from app.data.tables.cells import as_list
from cfg.data import TableDataConfig
from myfla.testing import cases

pytest.importorskip("pyarrow")

#: Cells of which some are numbers to one reader of numbers and not to another.
CELLS = ["1", "-2.5", "1e5", "", "x", "nan", " 3", "3 ", "0x10", "+4", "1_0", "1.5.2", "true", "True", "inf",
         "-Infinity", "NA", "null", ".5", "5.", "1e", "9007199254740993", "99999999999999999999", "0.1",
         "1e400", "2024-01-31", "é", "1d", "1f", "\t7", "-", "--1", "1 2", "٣", "nan(1)", "#N/A", "007"]


def table_of(draw):
    """Text with separators, now and then with a row too long, an empty line, quotes or odd ends of lines."""
    separator, width = draw.choice([",", ";", "\t", "|"]), draw.randint(2, 4)
    pool = draw.sample(CELLS, draw.randint(2, 6)) if draw.random() < 0.5 else ["1", "2.25", "", "-7e-3", "0.1"]
    lines = [separator.join(f"name{i}" for i in range(width))]
    for _ in range(draw.randint(1, 30)):
        cells = [draw.choice(pool) for _ in range(width + (draw.random() < 0.01))]
        lines.append(separator.join(f'"{cell}"' if draw.random() < 0.01 else cell for cell in cells))
        if draw.random() < 0.03:
            lines.append(draw.choice(["", " ", separator * (width - 1)]))
    return draw.choice(["\n", "\n", "\r\n", "\r"]).join(lines) + draw.choice(["", "\n", "\n\n"])


def told(path):
    """What a reader makes of a table: kinds, cells, numbers and times, or the error."""
    try:
        table = open_table(str(path), TableDataConfig(train_path=str(path)))
        found = {name: (fact.kind, fact.why, fact.marks, fact.odd) for name, fact in table.facts.items()}
        for name in table.facts:
            for method in ("numbers", "texts", "times"):
                values = []
                try:
                    for block in table.blocks([name]):
                        got = getattr(block, method)(name)
                        values.append(got if method == "texts" else repr(np.asarray(got[0]).tolist()) + repr(got[1])
                                      if method == "times" else got.tobytes())
                except ValueError as problem:
                    values.append(str(problem))
                found[name, method] = values
        return table.counts, found
    except ValueError as problem:
        return str(problem)


@cases(seed=range(8))
def test_both_readers_say_the_same(tmp_path, monkeypatch, seed):
    draw, both = random.Random(seed), 0
    asked = []
    original = delimited.quick_rows
    monkeypatch.setattr(delimited, "quick_rows", lambda *a: asked.append(a) or original(*a))
    for number in range(25):
        path = tmp_path / f"{number}.csv"
        path.write_bytes(table_of(draw).encode())
        asked.clear()
        quick, used = told(path), len(asked)
        with monkeypatch.context() as alone:
            alone.setattr(delimited, "has_pyarrow", lambda: False)
            want = told(path)
        assert quick == want, path.read_bytes()
        assert len(asked) == used, "alone it is not asked"
        both += bool(used)
    assert both > 5, "pyarrow was asked"


def test_what_pyarrow_cannot_read_is_read_on_by_python(tmp_path, monkeypatch):
    path = tmp_path / "a.csv"
    path.write_text("a,b\n" + "".join(f"{i},{i}.5\n" for i in range(1000)))

    def half(*arguments):
        for i, columns in enumerate(original(*arguments)):
            if i == 3:
                raise delimited.Unread("here")
            yield columns

    original = delimited.quick_rows
    monkeypatch.setattr(delimited, "quick_rows", half)
    file = delimited.Delimited(path, TableDataConfig(train_path=str(path)))
    found = [(row, as_list(columns[1])) for row, columns in file.blocks(70)]
    assert [row for row, _ in found][:5] == [0, 70, 140, 210, 280]
    assert [cell for _, cells in found for cell in cells] == [f"{i}.5" for i in range(1000)]

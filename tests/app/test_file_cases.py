"""Files as people have them: each gives the right values, or the exact message."""

import logging
import math
import re

import pytest

from app.data import read_source
from app.data.tables import delimited
from app.data.tables import table as tables
from app.errors import DataError
from cfg.data import TableDataConfig, TsDataConfig
from column_cases import COLUMN_CASES
from encoders.training.data.sequences import IGNORE
from file_cases import NUMBER_CASES, Want
from folder_cases import FOLDER_CASES
from hive_cases import HIVE_CASES
from label_cases import LABEL_CASES
from myfla.testing import cases
from parquet_cases import PARQUET_CASES as PARQUET_NUMBERS
from parquet_part_cases import PARQUET_PART_CASES
from text_cases import TEXT_FILE_CASES
from ts_cases import TS_CASES

try:
    import pyarrow as pa
    import pyarrow.parquet
except ModuleNotFoundError:  # CSV and .ts need no more than Python
    pa = None


TEXT_CASES = {**NUMBER_CASES, **COLUMN_CASES, **LABEL_CASES, **FOLDER_CASES, **HIVE_CASES, **TEXT_FILE_CASES}
PARQUET_CASES = {**PARQUET_NUMBERS, **PARQUET_PART_CASES}


def put(folder, files):
    """Write the files; the path of the only one, or the folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    if not files:
        return folder / "gone"
    return folder if len(files) > 1 or name.endswith(".md") else path


def plain(x):
    """A sequence as lists: of one channel, plain numbers; NaN as None."""
    rows = [[None if math.isnan(value) else value for value in row] for row in x.tolist()]
    return [row[0] for row in rows] if rows and len(rows[0]) == 1 else rows


def without_nan(x):
    return [without_nan(v) for v in x] if isinstance(x, list) else None if isinstance(x, float) and x != x else x


def told(target, classes):
    """Targets as people write them."""
    if classes is None:
        return target.tolist()
    names = {**dict(enumerate(classes)), IGNORE: None}
    return [names[i] for i in target.tolist()] if target.dim() else names[int(target)]


def check(folder, path, settings, want, caplog):
    if isinstance(want, str):
        with pytest.raises(ValueError) as caught:  # noqa: PT011 - all of it is compared below
            read_source(TableDataConfig(train_path=str(path), **settings))
        assert str(caught.value).replace(str(folder), "DIR") == want
        return
    with caplog.at_level(logging.INFO, "app.data"):
        data = read_source(TableDataConfig(train_path=str(path), **settings))
    part = data.train
    found = [plain(x) for x in part.sequences]
    if isinstance(want.x, dict):
        assert dict(zip(part.names, found)) == {name: without_nan(x) for name, x in want.x.items()}
    elif want.x is not None:
        assert found == without_nan(want.x)
    if want.names is not None:
        assert part.names == want.names
    if want.says is not None:
        found = [record.getMessage().replace(str(folder), "DIR") for record in caplog.records]
        found += [] if data.schema is None else [data.schema.describe()]
        assert [re.sub(r"; time: \w+ \([^)]*\)", "", line) for line in found] == want.says
    if want.classes is not None:
        assert data.classes == want.classes
    if want.targets is not None:
        targets = {name: told(part.targets[i], data.classes) for i, name in enumerate(part.names)}
        assert {name: targets[name] for name in want.targets} == want.targets


@cases(name=list(TEXT_CASES), reader=["python", "pyarrow"] if pa else ["python"])
def test_a_text_file_is_right_or_refused_in_these_words(tmp_path, caplog, monkeypatch, name, reader):
    monkeypatch.setattr(tables, "BLOCK", 1000)  # of which some files have several
    if reader == "python":
        monkeypatch.setattr(delimited, "has_pyarrow", lambda: False)
    files, settings, want = TEXT_CASES[name]
    if any(file.endswith(".parquet") for file in files):
        pytest.importorskip("pyarrow")
    check(tmp_path, put(tmp_path, files), settings, want, caplog)


def test_these_are_no_few_cases():
    assert len(TEXT_CASES) + len(TS_CASES) + len(PARQUET_CASES) >= 240
    assert len(TEXT_CASES) == sum(map(len, (NUMBER_CASES, COLUMN_CASES, LABEL_CASES, FOLDER_CASES, HIVE_CASES,
                                            TEXT_FILE_CASES)))
    assert sum(isinstance(want, Want) for _, _, want in TEXT_CASES.values()) >= 60


@pytest.mark.parametrize("name", TS_CASES)
def test_a_ts_file_is_right_or_refused_in_these_words(tmp_path, name):
    content, settings, want = TS_CASES[name]
    settings = dict(settings)
    needed, path = not settings.pop("bare", False), tmp_path / settings.pop("name", "a.ts")
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    config = TsDataConfig(train_path=str(path), **settings)
    if isinstance(want, str):
        with pytest.raises(DataError) as caught:
            read_source(config, targets=needed)
        assert str(caught.value).replace(str(tmp_path), "DIR") == want
        return
    data = read_source(config, targets=needed)
    assert [plain(x) for x in data.train.sequences] == without_nan(want.x)
    assert want.classes is None or data.classes == want.classes
    if want.targets is not None:
        assert [told(target, data.classes) for target in data.train.targets] == want.targets


@pytest.mark.parametrize("name", PARQUET_CASES if pa else [])
def test_a_parquet_file_is_right_or_refused_in_these_words(tmp_path, caplog, name):
    tables, settings, want = PARQUET_CASES[name]
    for file, made in tables.items():
        pyarrow.parquet.write_table(made(pa), str(tmp_path / file))
    check(tmp_path, tmp_path if len(tables) > 1 else tmp_path / file, settings, want, caplog)


def test_what_pyarrow_parts_into_folders_is_read_whole(tmp_path):
    pytest.importorskip("pyarrow")
    table = pa.table({"subject": [3, 3, 4, 4], "side": ["l", "l", "r", None], "x": [1.0, 2.0, 3.0, 4.0]})
    pa.parquet.write_to_dataset(table, str(tmp_path / "set"), partition_cols=["subject", "side"])
    config = TableDataConfig(train_path=str(tmp_path / "set"), sequence="subject", label="side", per_step=True,
                             ids="global")
    data = read_source(config)
    assert dict(zip(data.train.names, map(plain, data.train.sequences))) == {"3": [1, 2], "4": [4, 3]}
    assert [told(target, data.classes) for target in data.train.targets] == [["l", "l"], [None, "r"]]
    with pytest.raises(DataError, match=r"sequence '4' must be in one file, where data.time does not say"):
        read_source(TableDataConfig(train_path=str(tmp_path / "set"), sequence="subject"))


def test_a_link_that_leads_nowhere_is_no_file_less(tmp_path):
    (tmp_path / "1.csv").write_text("id,x\na,1\n")
    (tmp_path / "2.csv").symlink_to("gone.csv")
    with pytest.raises(DataError) as caught:
        read_source(TableDataConfig(train_path=str(tmp_path), sequence="id"))
    said = str(caught.value).replace(str(tmp_path), "DIR")
    assert said == "DIR/2.csv: file must be there; got 'a broken link, or not a regular file'"

"""The smartwatch recordings of the seglearn package: as a table, where it is installed, and nothing but that file."""

import importlib.util
import os
from pathlib import Path

import pytest

from app.data import load_data
from app_runs import compose_app

pytest.importorskip("pyarrow")
TOOL = Path(__file__).resolve().parents[2] / "tools" / "watch_table.py"
spec = importlib.util.spec_from_file_location("watch_table", TOOL)
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)


def test_another_file_is_not_unpickled(tmp_path):
    import pickle

    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    (tmp_path / "watch_dataset.npy").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(SystemExit, match=r"watch_dataset.npy must be the file of seglearn 1.2.5, with SHA-256 eb1"):
        tool.watch_table(tmp_path / "watch_dataset.npy")
    assert not (tmp_path / "ran").exists()


def test_the_table_is_read_with_people_apart(tmp_path):
    """``SEGLEARN=required`` makes of the package's absence a failure."""
    if importlib.util.find_spec("seglearn") is None:
        reason = "the seglearn package, which holds the recordings, is not installed: they were NOT read"
        (pytest.fail if os.environ.get("SEGLEARN") == "required" else pytest.skip)(reason)
    import pyarrow.parquet as pq

    table = tool.watch_table(tool.watch_file())
    pq.write_table(table, tmp_path / "watch.parquet")
    data = load_data(compose_app(["experiment=smartwatch", f"data.train_path={tmp_path / 'watch.parquet'}"]).data)
    assert (len(data.train), len(data.test), data.input_size, len(data.classes)) == (112, 28, 6, 7)
    assert min(data.train.lengths + data.test.lengths) == 947 and max(data.train.lengths + data.test.lengths) == 2618

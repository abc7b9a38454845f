"""Files of a run are complete or absent."""

import pytest

from app.run_folder import whole_file, write_json
from app_runs import compose_app
from encoders.training.run_config import write_config


def test_a_file_that_is_cut_off_leaves_nothing_and_spares_the_old_one(tmp_path):
    path = tmp_path / "table.csv"
    with pytest.raises(KeyboardInterrupt), whole_file(path) as file:
        file.write("half")
        file.flush()
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    with whole_file(path) as file:
        file.write("whole\n")
        assert not path.exists(), "no name before it is complete"
    with pytest.raises(ValueError, match="in between"), whole_file(path) as file:
        raise ValueError("in between")
    assert [entry.name for entry in tmp_path.iterdir()] == ["table.csv"] and path.read_text() == "whole\n"


def test_json_and_config_replace_what_was_there_at_once(tmp_path, monkeypatch):
    write_json({"a": 1}, tmp_path / "x.json")
    with pytest.raises(TypeError):
        write_json({"a": object()}, tmp_path / "x.json")
    assert (tmp_path / "x.json").read_text() == '{\n  "a": 1\n}\n'
    write_config(compose_app(), tmp_path / "config.yaml")
    assert [entry.name for entry in sorted(tmp_path.iterdir())] == ["config.yaml", "x.json"]


def test_figures_that_are_not_finite_are_null(tmp_path):
    write_json({"a": float("nan"), "b": [1.5, float("inf"), {"c": -float("inf")}], "d": (1, None)}, tmp_path / "x.json")
    assert (tmp_path / "x.json").read_text().replace("\n", "").replace(" ", "") == \
        '{"a":null,"b":[1.5,null,{"c":null}],"d":[1,null]}'

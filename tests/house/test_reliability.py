"""The table of promises names tests that exist."""

import ast
import re

from app_runs import ROOT

TEXT = (ROOT / ".doc" / "90_operations" / "reliability.md").read_text(encoding="utf-8")


def test_all_rows_are_there_and_each_names_what_holds_it():
    rows = re.findall(r"^\| (\d+) \|(.*)$", TEXT, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, len(rows) + 1)) and len(rows) > 33
    assert all("::" in row or "the same" in row or "make " in row for _, row in rows)


def test_every_named_test_exists():
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT)
    assert len(named) > 40
    for path, name in named:
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{path}::{name}"

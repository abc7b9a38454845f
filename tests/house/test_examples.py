"""The examples in the docstrings run."""

import doctest
import importlib

import pytest
import torch

from app_runs import ROOT
from myfla.testing import cases

BASES = {"libs": ("myfla",), "src": ("cfg", "encoders", "app")}
PROGRAMS = ("app.__main__", "cfg.cfg_hf.cfg_setE_mock_v004")


def with_examples():
    for base, packages in BASES.items():
        for package in packages:
            for path in sorted((ROOT / base / package).rglob("*.py")):
                name = ".".join(path.relative_to(ROOT / base).with_suffix("").parts).replace(".__init__", "")
                if name not in PROGRAMS and ">>>" in path.read_text(encoding="utf-8"):
                    yield name


@cases(name=list(with_examples()))
def test_docstring_examples_run(name):
    try:
        module = importlib.import_module(name)
    except ImportError as problem:
        pytest.skip(f"an extra is not installed: {problem}")
    if name == "myfla.integrations.transformers":
        pytest.importorskip("transformers", minversion="5.15")
    result = doctest.testmod(module, extraglobs={"torch": torch}, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted and not result.failed


def test_a_failing_example_is_noticed(tmp_path, monkeypatch):
    (tmp_path / "wrong_example.py").write_text('"""\n>>> 1 + 1\n3\n"""\n', encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert doctest.testmod(importlib.import_module("wrong_example"), report=False, verbose=False).failed == 1

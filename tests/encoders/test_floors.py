"""Who may know whom: imports, sizes of files, no asserts on arguments; and the examples in the docstrings."""

import ast
import doctest
import importlib
from pathlib import Path

import torch

from myfla.testing import cases

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"encoders": ROOT / "src" / "encoders", "cfg": ROOT / "src" / "cfg"}
FORBIDDEN = {"encoders": {"app", "fla", "lightning"}, "cfg": {"app", "encoders", "fla", "myfla", "torch"}}
HEAVY = {"encoders": {"hydra", "omegaconf"}, "cfg": set()}
ACME = ROOT / "examples" / "acme_encoder" / "src" / "acme_encoder"


def modules(package):
    """Every file of a package; the mock host is a program of its own."""
    return [path for path in sorted(FOLDERS[package].rglob("*.py")) if "cfg_hf" not in path.parts]


def imported(tree):
    """Top names of what the nodes import."""
    names = set()
    for node in tree:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@cases(package=list(FOLDERS))
def test_imports_go_down_only(package):
    assert modules(package)
    for path in modules(package):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert not imported(ast.walk(tree)) & FORBIDDEN[package], path
        assert not imported(tree.body) & HEAVY[package], f"{path} imports Hydra when it is imported"


@cases(package=list(FOLDERS))
def test_files_are_short_and_arguments_are_not_asserted(package):
    for path in modules(package):
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 350, path
        assert not any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(text))), path


def test_the_example_uses_public_names_only():
    import encoders

    for path in ACME.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "encoders":
                assert {alias.name for alias in node.names} <= set(encoders.__all__), path


@cases(path=[path.relative_to(ROOT / "src") for package in FOLDERS for path in modules(package)])
def test_docstring_examples_run(path):
    module = importlib.import_module(".".join(path.with_suffix("").parts).replace(".__init__", ""))
    result = doctest.testmod(module, extraglobs={"torch": torch}, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0

"""Which package may import which, rules for every file, and where torch must not be imported."""

import ast
import sys
from pathlib import Path

import pytest

from app_runs import ROOT, run_python
from myfla.testing import cases

LIBRARY = ("myfla.backends", "myfla.layers", "myfla.models", "myfla.modules", "myfla.ops", "myfla.utils")

# Each floor and the packages of ours that it may import. A new package needs a row; a row may only name what lies
# beside it or below, and a floor inside another one is allowed only by its own name.
FLOORS = {
    "myfla.utils": ("myfla.utils",),
    "myfla.backends": ("myfla.backends", "myfla.utils"),
    "myfla.ops": ("myfla.ops", "myfla.backends", "myfla.utils"),
    "myfla.modules": ("myfla.modules", "myfla.utils"),
    "myfla.layers": LIBRARY,
    "myfla.models": LIBRARY,
    "myfla.integrations": ("myfla.integrations", *LIBRARY),
    "myfla.testing": (),
    "cfg": ("cfg",),
    "encoders": ("encoders", "cfg", "myfla.layers", "myfla.models", "myfla.modules", "myfla.utils"),
    "encoders.training": ("encoders.training", "encoders", "cfg", "myfla.models", "myfla.utils"),
    "encoders.estimators": ("encoders.estimators", "encoders.training", "encoders", "cfg", "myfla.utils"),
    "app": ("app", "cfg", "encoders", "encoders.training", "myfla.backends", "myfla.models", "myfla.utils"),
}
# What else may be imported: by everyone of the package; and inside functions only, by the ones named.
OTHERS = {"myfla": {"torch", "einops", "safetensors"}, "cfg": {"hydra", "omegaconf"},
          "encoders": {"torch", "pluggy", "safetensors"},
          "encoders.training": {"torch", "lightning", "omegaconf", "rich", "torchmetrics", "yaml"},
          "encoders.estimators": {"torch", "numpy", "sklearn"}}
OPTIONAL = {"encoders.configs": {"hydra"}, "encoders.strategies": {"hydra"},
            "encoders.training.loop.loggers": {"mlflow"}}
HOSTS = {"myfla.integrations": {"transformers"}, "myfla.models.hf": {"transformers"}}

PACKAGES = {"myfla": ROOT / "libs", "cfg": ROOT / "src", "encoders": ROOT / "src", "app": ROOT / "src"}
ACME = ROOT / "examples" / "acme_encoder" / "src" / "acme_encoder"
LONGEST = 350


def modules(package):
    """``(dotted name, path)`` of every file of a package; the mock host is a program of its own."""
    base = PACKAGES[package]
    for path in sorted((base / package).rglob("*.py")):
        parts = path.relative_to(base).with_suffix("").parts
        if "cfg_hf" not in parts:
            yield ".".join(parts).replace(".__init__", ""), path


def imported(tree):
    """Dotted names of what the nodes import; of ``from a import b``, both ``a`` and ``a.b``."""
    for node in tree:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide which floor is meant"
            yield node.module
            if node.module in PACKAGES:
                for alias in node.names:
                    yield f"{node.module}.{alias.name}"


def below(name, roots):
    return any(name == root or name.startswith(root + ".") for root in roots)


def row(table, name):
    """The longest key of a table that a dotted name lies below."""
    found = [key for key in table if below(name, [key])]
    return max(found, key=len) if found else None


@cases(package=list(PACKAGES))
def test_imports_go_down_only(package):
    for name, path in modules(package):
        if name == package:
            allowed = [package, *FLOORS.get(package, ())]
        else:
            floor = row(FLOORS, name)
            assert floor, f"{name} is on no floor: give it a row"
            allowed = FLOORS[floor]
        for other in imported(ast.walk(ast.parse(path.read_text(encoding="utf-8")))):
            if other.split(".")[0] in PACKAGES and other not in PACKAGES:
                target = row(FLOORS, other)  # None for a name, of `from myfla import __version__`
                assert target is None or target in allowed, f"{name} must not know {other}"


def test_no_files_import_each_other_in_a_circle():
    """Imports inside functions and for type checkers count: each is an arrow that a reader has to follow."""
    files = {name: path for package in PACKAGES for name, path in modules(package)}
    arrows = {name: sorted(set(imported_files(path, files)) - {name}) for name, path in files.items()}
    assert sum(map(len, arrows.values())) > len(files), "the reader of imports finds too little"
    assert circle({"a": ["b"], "b": ["c"], "c": ["b"]}) == ["b", "c", "b"]
    found = circle(arrows)
    assert found is None, " -> ".join(found)


def imported_files(path, files):
    """Those of ``files`` that a file imports, at its top or anywhere below."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in files)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield from [name for name in (inner, node.module) if name in files][:1]


def circle(arrows):
    """Names along one circle of the graph ``{name: [names]}``, or None."""
    done = set()

    def walk(name, trail):
        if name in trail:
            return [*trail[trail.index(name):], name]
        if name in done:
            return None
        for target in arrows.get(name, ()):
            found = walk(target, [*trail, name])
            if found:
                return found
        done.add(name)
        return None

    return next(filter(None, (walk(name, []) for name in arrows)), None)


@pytest.mark.skipif(not hasattr(sys, "stdlib_module_names"), reason="came with Python 3.10")
@cases(package=[name for name in OTHERS if name in PACKAGES])
def test_other_libraries_are_those_of_the_metadata(package):
    """The application's own are its extras, which its wheel lane installs and nothing else."""
    always = set(getattr(sys, "stdlib_module_names", ())) | set(PACKAGES)
    for name, path in modules(package):
        known = always | OTHERS[row(OTHERS, name)]
        tree = ast.parse(path.read_text(encoding="utf-8"))
        hosts = HOSTS.get(row(HOSTS, name), set())
        lazy = OPTIONAL.get(row(OPTIONAL, name), set()) | hosts
        for where, allowed in ((tree.body, known | hosts), (ast.walk(tree), known | lazy)):
            strange = {other.split(".")[0] for other in imported(where)} - allowed
            assert not strange, f"{name} imports {sorted(strange)}"


@cases(package=list(PACKAGES))
def test_arguments_are_not_checked_by_assert(package):
    """``python -O`` drops asserts; the public helpers of tests are the one place that raises AssertionError."""
    for _name, path in modules(package):
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        assert not any(isinstance(node, ast.Assert) for node in nodes), path


@cases(folder=["libs", "src", "benchmarks", "examples", "tests"])
def test_long_files_give_a_reason_in_their_head(folder):
    for path in sorted((ROOT / folder).rglob("*.py")):
        lines = path.read_text(encoding="utf-8").splitlines()
        if len(lines) > LONGEST:
            assert "Long because" in "\n".join(lines[:12]), f"{path} has {len(lines)} lines; which two things is it?"


@cases(package=["cfg", "encoders"])
def test_importing_configs_and_names_needs_no_torch(package, tmp_path):
    lines = [f"import sys; sys.path[:0] = [{str(ROOT / 'src')!r}, {str(ROOT / 'libs')!r}]"]
    if package == "encoders":
        lines += ["from encoders import available_strategies, encoder_config, register_plugin_configs",
                  "encoder_config({'name': 'rwkv7', 'input_size': 3})"]
    else:
        names = [name for name, _ in modules("cfg")]
        lines += [f"import {', '.join(names)}"]
    lines.append("assert not {'torch', 'numpy', 'lightning'} & set(sys.modules)")
    done = run_python(tmp_path, "-c", "\n".join(lines))
    assert done.returncode == 0, done.stderr


def test_the_example_uses_public_names_only():
    import encoders

    for path in ACME.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "encoders":
                assert {alias.name for alias in node.names} <= set(encoders.__all__), path


def test_the_rules_notice_a_breach(tmp_path, monkeypatch):
    """A module of the ops that imports a layer, and a plain assert, must not pass."""
    bad = tmp_path / "myfla" / "ops" / "bad.py"
    bad.parent.mkdir(parents=True)
    monkeypatch.setitem(PACKAGES, "myfla", tmp_path)
    for text, rule in (("import pandas\n", test_other_libraries_are_those_of_the_metadata),
                       ("from myfla.layers import GatedDeltaNet\n", test_imports_go_down_only),
                       ("def f(x):\n    assert x > 0\n", test_arguments_are_not_checked_by_assert)):
        bad.write_text(text, encoding="utf-8")
        with pytest.raises(AssertionError, match=r"bad|pandas"):
            rule("myfla")
    assert Path(bad).exists()

"""What the documents name exists: files, modules, tests, targets, commands, links. (Their examples run elsewhere:
the guides' in `tests/app/test_documents.py` and `tests/integrations/test_documents.py`, the docstrings' in
`test_examples.py`.)"""

import importlib
import itertools
import re

import pytest

from app_runs import ROOT
from myfla.testing import cases

PAGES = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in (
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")),
    ROOT / "tests" / "myfla" / "README.md", *sorted(ROOT.glob("docs/*.md")),
    *sorted(ROOT.glob(".doc/**/*.md")), *sorted(ROOT.glob("examples/*/README.md")))}  # fmt: skip
TOPS = ("libs", "src", "tests", "tools", "benchmarks", "conf", "examples", ".ci")
TREE = [str(path.relative_to(ROOT)) for top in TOPS for path in (ROOT / top).rglob("*") if path.suffix != ".pyc"]


def spans(text):
    """What stands in backticks outside of fenced blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def spelt_out(name):
    """``a/{b,c}.py`` as ``a/b.py`` and ``a/c.py``."""
    parts = [part.split(",") for part in re.split(r"\{([^}]*)\}", name)]
    parts[::2] = [[",".join(part)] for part in parts[::2]]
    return ["".join(choice) for choice in itertools.product(*parts)]


def anchors(text):
    """What a heading is called in a link."""
    heads = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@cases(page=list(PAGES))
def test_links_lead_somewhere(page):
    folder = (ROOT / page).parent
    for link in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if not link.startswith("http"):
            path, _, anchor = link.partition("#")
            target = folder / path if path else ROOT / page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link


@cases(page=list(PAGES))
def test_named_files_exist(page):
    """A path from the root, or the end of one."""
    for span in (span for span in spans(PAGES[page]) if "NAME" not in span):
        if re.fullmatch(r"[\w./*{},\-]+\.(py|md|yaml|toml|txt)(::\w+)?", span):
            for name in spelt_out(span.split("::")[0]):
                pattern = re.escape(name).replace(r"\*", "[^/]*")
                assert (ROOT / name).exists() or any(re.search(f"(^|/){pattern}$", file) for file in TREE), name
        elif re.fullmatch(r"(libs|src|tests|tools|docs|conf|benchmarks|examples|\.doc|\.ci)/[\w./\-]*", span):
            assert (ROOT / span).exists(), span


@cases(page=list(PAGES))
def test_named_tests_exist(page):
    for path, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)", PAGES[page]):
        assert re.search(rf"^def {name}\(", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE), f"{path}::{name}"


def thing(name):
    """A module, or what is in one; skips where an extra is missing."""
    parts = name.split(".")
    found = importlib.import_module(parts[0])
    for i, part in enumerate(parts[1:], 2):
        if not hasattr(found, part) and hasattr(found, "__path__"):
            try:
                importlib.import_module(".".join(parts[:i]))
            except ImportError as problem:
                cause = problem.__context__ if problem.name is None else problem  # one that names the extra hides it
                if (getattr(cause, "name", None) or "").split(".")[0] in ("transformers", "onnx"):
                    pytest.skip(f"an extra is not installed: {problem}")
                raise AssertionError(name) from problem
        found = getattr(found, part)
    return found


@cases(name=sorted({name for text in PAGES.values() for span in spans(text)
                    for name in re.findall(r"^((?:myfla|encoders|cfg)(?:\.\w+)+)(?:$|\()", span)}))  # fmt: skip
def test_named_modules_and_names_exist(name):
    assert thing(name) is not None


@cases(page=list(PAGES))
def test_named_settings_and_choices_exist(page):
    """``group.key``, ``group.key=value`` and ``group=choice``, against the surface that is written down."""
    surface = (ROOT / "tests" / "house" / "surface.txt").read_text(encoding="utf-8")
    settings = set(re.findall(r"^setting \S+ (\w+\.\w+)$", surface, re.MULTILINE))
    files = r"\w+\.(safetensors|json|yaml|py|md)"
    choices = set(re.findall(r"^choice (\S+)$", surface, re.MULTILINE))
    groups = {choice.split("=")[0] for choice in choices}
    for span in spans(PAGES[page]):
        for key in re.findall(r"^(?:\+)?((?:%s)\.[a-z]\w*)(?==|$)" % "|".join(groups), span):
            assert key in settings or re.fullmatch(files, key), span
        for choice in re.findall(r"^((?:%s)=[a-z]\w*)$" % "|".join(groups), span):
            assert choice in choices, span


@cases(page=list(PAGES))
def test_named_commands_exist(page):
    makefile, sections = ((ROOT / name).read_text(encoding="utf-8") for name in ("Makefile", "benchmarks/sections.py"))

    for target in re.findall(r"(?:`|^)make ([\w\-]+)", PAGES[page], re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for words in re.findall(r"python -m benchmarks((?: [a-z]\w+)+)", PAGES[page]):
        assert set(words.split()) <= set(re.findall(r'"(\w+)": cases', sections)), words
    for words in re.findall(r"python -m pytest ([^`]*)", PAGES[page]):
        for path in re.findall(r"tests/[\w/.]*\w", words):
            assert (ROOT / path).exists(), path


def test_a_name_that_is_gone_is_noticed():
    for wrong in ("myfla.nothing", "myfla.layers.Nothing", "encoders.buld_encoder"):
        with pytest.raises((AssertionError, AttributeError)):
            thing(wrong)
    assert spelt_out("a/{b,c_*}.py") == ["a/b.py", "a/c_*.py"] and anchors("## What, the `same`") == {"what-the-same"}

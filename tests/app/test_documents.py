"""The examples and commands of README and the guides run."""

import itertools
import re
import shlex
import sys

import pytest

from app_runs import ROOT, compose_app, run_app, run_python

GUIDES = {"README.md", *(path.name for path in (ROOT / "docs").glob("*.md"))}


def examples(path):
    """The Python blocks of a page, but for those with transformers (`tests/integrations/test_documents.py`)."""
    blocks = re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)
    return [block for block in blocks if "transformers" not in block]


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", [path for path in PAGES if examples(path)], ids=lambda path: path.name)
def test_python_examples_run(page, tmp_path):
    """All blocks of a page, one after another."""
    paths = f"import sys; sys.path[:0] = [{str(ROOT / 'src')!r}, {str(ROOT / 'libs')!r}]\n"
    (tmp_path / "page.py").write_text(paths + "\n".join(examples(page)), encoding="utf-8")
    done = run_python(tmp_path, "page.py")
    assert done.returncode == 0, done.stderr


def test_the_pages_have_examples():
    counts = {path.name: len(examples(path)) for path in PAGES}
    assert counts["README.md"] >= 3 and len([name for name in counts if counts[name]]) >= 7, counts


def commands():
    """``(page, what follows "-m app")`` of every command line in the documents."""
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / ".doc").rglob("*.md"))):
        fenced = False
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("```"):
                fenced = not fenced and line != "```"
            elif fenced and " -m app " in line:
                yield path.name, line.split(" -m app ", 1)[1].split(" #")[0].replace(" --cfg job", "")


def test_every_command_of_the_documents_is_legal():
    """Each composes to a checked config; of a sweep, with the first of every list of values."""
    tried = 0
    for page, command in commands():
        words = itertools.takewhile(lambda word: word not in ("<", ">", ">>", "|"), shlex.split(command))
        words = [word for word in words if not word.startswith("-")]
        sweep = shlex.split(command)[0] == "-m"
        if any(word.startswith(("hydra/launcher=", "hparams_search=")) for word in words):
            continue  # of extras that may not be installed
        if sweep:
            words = [word if "[" in word else word.split(",")[0] for word in words]
        try:
            compose_app([word for word in words if not word.startswith("hydra")])
        except Exception as problem:
            raise AssertionError(f"{page}: {command}: {problem}") from problem
        tried += 1
    assert tried >= 20


def commands_for_newcomers():
    """The commands of README and the guides, except those that need the reader's own files."""
    for page, command in commands():
        if page in GUIDES and not any(word in command for word in ("My_", "run=", "<")):
            yield f"{page}: {command.strip()}"


@pytest.mark.slow
@pytest.mark.parametrize("said", list(commands_for_newcomers()))
def test_the_commands_of_readme_and_guides_run(said, tmp_path):
    """Shortened: one epoch of few sequences, one length."""
    words = shlex.split(said.split(": ", 1)[1])
    if "data.train_path=my.csv" in words:  # the reader's own
        pytest.importorskip("pyarrow")
        rows = [f"{name},{t},{name % 2},{name * t % 7}" for name in range(40) for t in range(9)]
        (tmp_path / "my.csv").write_text("\n".join(["id,t,class,a", *rows]) + "\n", encoding="utf-8")
        words[words.index("data.train_path=my.csv")] = f"data.train_path={tmp_path / 'my.csv'}"
    shorter = [] if "--help" in words or "job=describe" in words else ["experiment=quick", "trainer.max_epochs=1"]
    if "job=bench" in words:
        shorter = ["job.lengths=[8]", "job.sessions=[1]", "job.rounds=3", "job.memory=false"]
    done = run_app(tmp_path, *words, *shorter, timeout=600)
    assert done.returncode == 0, done.stderr


def test_the_three_lines_of_a_host_program_are_three():
    (block,) = [block for block in examples(ROOT / "README.md") if "get_strategy" in block]
    lines = [line for line in block.split("\n\n")[2].splitlines() if not line.startswith("x =")]
    assert len(lines) == 3 and lines[0].startswith("config =") and lines[2].startswith("out ="), lines


@pytest.mark.parametrize("target", ["demo", "test", "test-slow", "clean"])
def test_make_targets_of_the_readme_exist(target):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_every_dependency_has_a_pin_for_every_python():
    if sys.version_info < (3, 11):
        pytest.skip("tomllib came with Python 3.11")
    import tomllib
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["app"], *extras["test"], *extras["sweep"], *extras["optuna"]]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    for version in ("3.8", "3.9", "3.10", "3.11", "3.12", "3.13"):
        environment = {"python_version": version, "extra": ""}
        valid = {pin.name: pin for pin in pins if pin.marker is None or pin.marker.evaluate(environment)}
        for need in map(Requirement, wanted):
            (pinned,) = valid[need.name].specifier
            assert pinned.operator == "==" and need.specifier.contains(pinned.version), (version, need, pinned)


def test_the_version_is_said_once_in_each_place():
    import myfla

    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{myfla.__version__}"' in text
    assert f"## {myfla.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")

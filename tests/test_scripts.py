"""The scripts run as pytest runs them: same cases, with neither pytest nor hypothesis at hand."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from myfla.testing import cases, expand_cases, run_as_script

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = (
    "test_gated_delta_rule.py", "test_short_convolution.py", "test_gated_deltanet.py",
    "test_fla_encoder_strategy_integration.py",
)  # fmt: skip
COUNT = """
import runpy, sys
from myfla.testing import expand_cases
names = runpy.run_path(sys.argv[1], run_name="counted")
print(sum(len(expand_cases(f)) for n, f in names.items() if n.startswith("test_")))
"""


@pytest.fixture(scope="module")
def without_runners(tmp_path_factory):
    """A folder in which importing a test runner fails."""
    folder = tmp_path_factory.mktemp("refuse")
    for name in ("pytest", "hypothesis"):
        (folder / f"{name}.py").write_text(f"raise ImportError('a script imported {name}')\n")
    return folder


@cases(script=SCRIPTS)
def test_a_script_has_the_cases_that_pytest_collects(script, without_runners):
    path = str(ROOT / "tests" / "myfla" / script)
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(map(str, (without_runners, ROOT / "libs", ROOT / "src"))))
    counted = subprocess.run([sys.executable, "-c", COUNT, path], env=environment, capture_output=True, text=True)
    assert counted.returncode == 0, counted.stderr
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", path]
    collected = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    found = re.search(r"(\d+) tests collected", collected.stdout)
    assert found, collected.stdout[-2000:] + collected.stderr[-2000:]
    assert int(counted.stdout) == int(found.group(1)) > 0


@cases(script=SCRIPTS)
def test_a_script_finds_the_library_by_itself(script, without_runners, tmp_path):
    """PYTHONPATH=src, from the checkout and from elsewhere: import everything, run nothing."""
    path = ROOT / "tests" / "myfla" / script
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(map(str, (without_runners, ROOT / "src"))))
    code = f"import runpy; runpy.run_path({str(path)!r}, run_name='imported')"
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_failing_script_says_so_and_exits_with_one(capsys):
    def test_good():
        pass

    def test_bad(x):
        assert x == 1

    cases(x=[1, 2])(test_bad)
    assert len(expand_cases(test_bad)) == 2
    with pytest.raises(SystemExit) as stop:
        run_as_script({"test_good": test_good, "test_bad": test_bad})
    assert stop.value.code == 1
    assert capsys.readouterr().out.strip().endswith("2 passed, 1 failed")
    with pytest.raises(SystemExit) as stop:
        run_as_script({"test_good": test_good})
    assert stop.value.code == 0
    with pytest.raises(SystemExit) as stop:
        run_as_script({})
    assert stop.value.code == 1

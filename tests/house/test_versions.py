"""The versions that the metadata allow are those that a lane of CI runs."""

import re
import shutil
import subprocess
from typing import Dict, Iterator, List

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from app_runs import ROOT

try:
    import tomllib
except ImportError:  # Python 3.11 has it
    tomllib = pytest.importorskip("tomli")

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
RUN = (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def requirements(*extras: str) -> List[Requirement]:
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    return [Requirement(line) for line in lines]


def pins(name: str) -> Iterator[Requirement]:
    for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            yield Requirement(line)


def lowest(found: List[Requirement]) -> Dict[str, Version]:
    """The lower bound of each; the highest of them where several are given."""
    out: Dict[str, Version] = {}
    for requirement in found:
        name = canonicalize_name(requirement.name)
        bounds = [Version(each.version) for each in requirement.specifier if each.operator == ">="]
        assert bounds, f"{requirement} has no lower bound"
        out[name] = max([*bounds, out[name]] if name in out else bounds)
    return out


def test_the_lowest_lane_pins_what_the_metadata_allow():
    (extras,) = re.findall(r'-r \.ci/lowest\.txt "\.\[(.*)\]"', RUN)
    found = {}
    for pin in pins(".ci/lowest.txt"):
        (exact,) = pin.specifier
        assert exact.operator == "==", pin
        found[canonicalize_name(pin.name)] = Version(exact.version)
    assert found == lowest(requirements(*extras.split(",")))


def test_the_oldest_python_and_torch_have_a_lane_of_their_own():
    torch = lowest([each for each in requirements() if each.name == "torch"])["torch"]
    assert f"torch=={torch} " in RUN and "python3.8" in RUN and PROJECT["requires-python"] == ">=3.8"


@pytest.mark.parametrize("python", ["3.8", "3.9", "3.10", "3.11", "3.12"])
def test_the_pinned_versions_are_allowed(python):
    environment = {**default_environment(), "python_version": python, "python_full_version": python + ".1"}
    pinned = {canonicalize_name(pin.name): pin for pin in pins("constraints.txt")
              if pin.marker is None or pin.marker.evaluate(environment)}  # fmt: skip
    asked = [each for each in requirements(*PROJECT["optional-dependencies"])
             if each.marker is None or each.marker.evaluate(environment)]  # fmt: skip
    compared = 0
    for requirement in asked:
        pin = pinned.get(canonicalize_name(requirement.name))
        if pin is not None:
            (exact,) = pin.specifier
            assert requirement.specifier.contains(exact.version), f"{pin} is not in {requirement}"
            compared += 1
    assert compared > 15


@pytest.mark.skipif(not shutil.which("bash"), reason="the lanes are a script of bash")
def test_a_machine_without_the_pythons_says_so_and_goes_on(tmp_path):
    for tool in ("bash", "dirname", "mktemp", "rm"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    unfit = tmp_path / "unfit"
    unfit.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")  # as a Python that is too old, or too new
    unfit.chmod(0o755)
    environment = {"PATH": str(tmp_path), "TMPDIR": str(tmp_path), "PYTHON": str(unfit)}
    environment["LANES"] = "py38 py38app lowest hf"
    done = subprocess.run(["bash", str(ROOT / ".ci" / "run")], env=environment, check=False, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, universal_newlines=True)
    assert done.stdout.count("NOT run") == 4 and done.stdout.count("SKIPPED") == 4, done.stdout
    assert "0 passed, 0 failed, 4 skipped" in done.stdout and done.returncode == 1  # nothing that ran is no success

"""Shared by all tests: cases without parametrize marks, one seed, uninitialised memory filled with NaN."""

import os
import sys
import tempfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
for folder in ("libs", "src", "tests/support"):
    if str(ROOT / folder) not in sys.path:
        sys.path.insert(0, str(ROOT / folder))

from myfla.testing import expand_cases  # noqa: E402
from poison import poison  # noqa: E402

os.environ.setdefault("PYTHONHASHSEED", "0")
# Inductor keys what it keeps on disk by a graph's operators, not by the code behind them: never use another checkout's.
if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
    _inductor = tempfile.TemporaryDirectory(prefix="inductor-")  # inherited by the workers of -n and their processes
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = _inductor.name
torch.set_num_threads(int(os.environ.get("MYFLA_TEST_THREADS", "1")))


def pytest_generate_tests(metafunc):
    """Turn the ``cases`` attribute left by `myfla.testing.cases` into parameters."""
    arguments = expand_cases(metafunc.function)
    names = list(arguments[0])
    if names:
        rows = [[row[name] for name in names] for row in arguments]
        ids = ["-".join(f"{name}={_told(row[name])}" for name in names)[:120] for row in arguments]
        metafunc.parametrize(names, rows, ids=ids)


def _told(value):
    """A function by its name: its address differs from process to process, and so from worker to worker of -n."""
    return value.__name__ if callable(value) and hasattr(value, "__name__") else value


@pytest.fixture(autouse=True)
def _one_seed():
    torch.manual_seed(0)
    torch.set_flush_denormal(False)  # a graph that Inductor of PyTorch 2.4 has compiled turns it on for the process


@pytest.fixture(autouse=True)
def _uninitialised_memory_is_nan(request, monkeypatch):
    """For the library and the encoders; compilers look into the functions that this replaces, so not for exports."""
    if {"myfla", "encoders", "native", "trust"} & set(request.path.relative_to(ROOT).parts[:2]):
        poison(monkeypatch)

"""The compiled kernels for these tests: the installed ones, or the checkout's."""

import importlib
import sys

import pytest

import native_build
from myfla.utils import native as door
from native_modules import without_kernels


@pytest.fixture(scope="session")
def kernels():
    """The package `myfla_native`. What is tested is the installed one, or else the checkout's."""
    if door.missing_native() is None:
        return importlib.import_module("myfla_native")
    folder = native_build.built()
    if folder is None:
        pytest.skip("there is no C compiler here, and no ziglang")
    sys.path.insert(0, str(folder))
    sys.modules.pop("myfla_native", None)
    importlib.invalidate_caches()
    return importlib.import_module("myfla_native")


@pytest.fixture
def native(kernels, monkeypatch):
    """`myfla` with its compiled kernels, for one test."""
    monkeypatch.setattr(door, "_installed", lambda: (kernels, None))
    yield kernels
    kernels.library.set_level(None)


@pytest.fixture
def plain():
    """A function that runs another without compiled kernels."""
    return without_kernels

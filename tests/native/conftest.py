"""The compiled kernels for these tests: the installed ones, or built from the checkout once for every state of the
sources."""

import importlib
import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from myfla.utils import native as door
from native_modules import without_kernels

DISTRIBUTION = Path(__file__).resolve().parents[2] / "libs" / "myfla_native"


def toolchain():
    """The distribution's build script as a module."""
    spec = importlib.util.spec_from_file_location("myfla_native_toolchain", DISTRIBUTION / "toolchain.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def built():
    """A folder in which `myfla_native` lies with its library; several processes may ask at once."""
    tools = toolchain()
    if tools.system_compiler() is None and importlib.util.find_spec("ziglang") is None:
        pytest.skip("there is no C compiler here, and no ziglang")
    folder = Path(tempfile.gettempdir()) / f"myfla_native_{os.getuid() if hasattr(os, 'getuid') else 0}"
    folder = folder / tools.fingerprint()
    if not folder.exists():
        folder.parent.mkdir(exist_ok=True)
        own = Path(tempfile.mkdtemp(dir=folder.parent))
        shutil.copytree(DISTRIBUTION / "myfla_native", own / "myfla_native",
                        ignore=shutil.ignore_patterns("*.so", "*.dylib", "*.dll", "__pycache__"))
        tools.build(own / "myfla_native")
        try:
            own.rename(folder)
        except OSError:  # another process was first
            shutil.rmtree(own)
    return folder


@pytest.fixture(scope="session")
def kernels():
    """The package `myfla_native`. What is tested is the installed one, or else the checkout's."""
    if door.missing_native() is None:
        return importlib.import_module("myfla_native")
    sys.path.insert(0, str(built()))
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

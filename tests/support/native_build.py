"""The compiled kernels of this checkout, built once for every state of it."""

import hashlib
import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path

DISTRIBUTION = Path(__file__).resolve().parents[2] / "libs" / "myfla_native"


def toolchain():
    """The distribution's build script as a module."""
    spec = importlib.util.spec_from_file_location("myfla_native_toolchain", DISTRIBUTION / "toolchain.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def built():
    """A folder in which `myfla_native` lies with its library, or None without a compiler; several processes may ask at
    once."""
    tools = toolchain()
    if tools.system_compiler() is None and importlib.util.find_spec("ziglang") is None:
        return None
    home = Path(tempfile.gettempdir()) / f"myfla_native_{os.getuid() if hasattr(os, 'getuid') else 0}"
    home.mkdir(exist_ok=True)
    library = made(home / f"library_{tools.fingerprint()}", tools.build)

    def package(folder):
        shutil.copytree(tools.PACKAGE, folder / "myfla_native",
                        ignore=shutil.ignore_patterns("*.so", "*.dylib", "*.dll", "__pycache__"))
        for file in library.iterdir():
            shutil.copy2(file, folder / "myfla_native")

    return made(home / f"package_{package_name(tools.fingerprint(), tools.PACKAGE)}", package)


def package_name(library, package):
    """A short name of a library and the Python around it."""
    digest = hashlib.sha256(library.encode())
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def made(folder, make):
    """A folder that holds all that ``make(folder)`` puts there, or does not exist."""
    if not folder.exists():
        own = Path(tempfile.mkdtemp(dir=folder.parent))
        make(own)
        try:
            own.rename(folder)
        except OSError:  # another process was first
            shutil.rmtree(own)
    return folder

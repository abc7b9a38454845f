"""Wheels of `myfla-native` for every platform in `toolchain.TARGETS`, cross-compiled by Zig on this machine::

    python libs/myfla_native/wheels.py FOLDER [TARGET ...]

Each wheel is checked: its name, and that its library is for the platform in the name.
"""

import argparse
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import List

sys.path.insert(0, str(Path(__file__).resolve().parent))
import toolchain

# The numbers of processors in the headers of the three formats of libraries.
ELF = {62: "x86_64", 183: "aarch64"}
MACHO = {0x01000007: "x86_64", 0x0100000C: "aarch64"}
PE = {0x8664: "x86_64"}


def build(folder: Path, target: str) -> Path:
    """Build one wheel.

    Raises:
        RuntimeError: the build failed, or the wheel's library is not for the platform in its name.
    """
    before = set(folder.glob("*.whl"))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(folder), str(toolchain.HERE)]
    subprocess.run(command, check=True, env={**os.environ, "MYFLA_NATIVE_TARGET": target})
    new = set(folder.glob("*.whl")) - before or {max(folder.glob("*.whl"), key=lambda path: path.stat().st_mtime)}
    (wheel,) = new
    check(wheel, target)
    return wheel


def check(wheel: Path, target: str) -> None:
    """Refuse a wheel that is not for its platform."""
    kind = toolchain.TARGETS[target]
    if not wheel.name.endswith(f"-py3-none-{kind.tag}.whl"):
        raise RuntimeError(f"{wheel.name} is not tagged {kind.tag}")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        libraries = [name for name in names if name.endswith((".so", ".dylib", ".dll"))]
        if libraries != [f"myfla_native/{kind.library}"]:
            raise RuntimeError(f"{wheel.name} holds the libraries {libraries}")
        found = machine(archive.read(libraries[0]))
    system = {"linux": "ELF", "macos": "Mach-O", "windows": "PE"}[target.split("-")[0]]
    if found != (system, kind.machine):
        raise RuntimeError(f"{wheel.name} holds a library for {found}")


def machine(library: bytes) -> tuple:
    """The format of a shared library and the processor it is for."""
    if library[:4] == b"\x7fELF":
        return "ELF", ELF.get(int.from_bytes(library[18:20], "little"))
    if library[:4] == b"\xcf\xfa\xed\xfe":
        return "Mach-O", MACHO.get(int.from_bytes(library[4:8], "little"))
    if library[:2] == b"MZ":
        header = int.from_bytes(library[60:64], "little")
        return "PE", PE.get(int.from_bytes(library[header + 4 : header + 6], "little"))
    return "unknown", None


def main() -> None:
    parser = argparse.ArgumentParser(description="Build wheels for other platforms.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"all, or of: {', '.join(toolchain.TARGETS)}")
    given = parser.parse_args()
    wrong = set(given.targets) - set(toolchain.TARGETS)
    if wrong:
        parser.error(f"no such target: {', '.join(sorted(wrong))}")
    given.folder.mkdir(parents=True, exist_ok=True)
    targets: List[str] = given.targets or list(toolchain.TARGETS)
    for target in targets:
        wheel = build(given.folder, target)
        print(f"{target}: {wheel.name}, {wheel.stat().st_size // 1024} KiB", flush=True)


if __name__ == "__main__":
    main()

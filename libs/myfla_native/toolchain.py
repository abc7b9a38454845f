"""Compile the C sources: with the system's compiler, or with the one in the package `ziglang`, which has every target.

As a program it builds the library for this machine, in the package's folder, for development::

    python libs/myfla_native/toolchain.py [--sanitize] [--to FOLDER]
"""

import argparse
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Sequence

HERE = Path(__file__).resolve().parent
SOURCES = HERE / "csrc"
PACKAGE = HERE / "myfla_native"

COMMON = ["-std=gnu11", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", "-fno-math-errno", "-Wall",
          "-Wextra", "-Werror", f"-I{SOURCES}"]  # fmt: skip
SANITIZE = ["-O1", "-g1", "-march=native", "-DMN_ONE_VARIANT", "-fno-omit-frame-pointer",
            "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]  # fmt: skip
VARIANTS = {
    "x86_64": {
        "base": [],
        "avx2": ["-mavx2", "-mfma", "-mf16c"],
        "avx512": ["-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"],
    },
    "aarch64": {"base": []},
}


class Target(NamedTuple):
    """A platform to build for.

    Attributes:
        zig: its name in Zig.
        tag: the platform part of a wheel's name, for a library that Zig has linked.
        library: the file's name.
    """

    zig: str
    tag: str
    library: str = "libmyfla_native.so"

    @property
    def machine(self) -> str:
        return self.zig.split("-")[0]


TARGETS = {
    "linux-x86_64": Target("x86_64-linux-gnu.2.17", "manylinux2014_x86_64.manylinux_2_17_x86_64"),
    "linux-arm64": Target("aarch64-linux-gnu.2.17", "manylinux2014_aarch64.manylinux_2_17_aarch64"),
    "macos-x86_64": Target("x86_64-macos.11.0", "macosx_11_0_x86_64", "libmyfla_native.dylib"),
    "macos-arm64": Target("aarch64-macos.11.0", "macosx_11_0_arm64", "libmyfla_native.dylib"),
    "windows-x86_64": Target("x86_64-windows-gnu", "win_amd64", "myfla_native.dll"),
}


def this_machine() -> str:
    """The key in `TARGETS` of this machine.

    Raises:
        RuntimeError: `TARGETS` does not contain this machine.
    """
    system = {"linux": "linux", "darwin": "macos", "win32": "windows"}.get(sys.platform, sys.platform)
    machine = platform.machine().lower()
    machine = {"amd64": "x86_64", "aarch64": "arm64"}.get(machine, machine)
    name = f"{system}-{machine}"
    if name not in TARGETS:
        raise RuntimeError(f"myfla-native: no kernels for {name}; there are {', '.join(TARGETS)}")
    return name


def system_compiler() -> Optional[List[str]]:
    """``$CC``, otherwise the first of cc, gcc and clang that is installed."""
    if os.environ.get("CC"):
        return shlex.split(os.environ["CC"])
    for name in ("cc", "gcc", "clang"):
        if shutil.which(name):
            return [name]
    return None


def zig_compiler(target: str) -> List[str]:
    """Zig's C compiler, from PyPI's `ziglang`."""
    return [sys.executable, "-m", "ziglang", "cc", "-target", TARGETS[target].zig, "-fno-sanitize=undefined"]


def build(folder: Path, target: Optional[str] = None, sanitize: bool = False) -> Path:
    """Compile and link into a folder.

    Args:
        folder: of the library; made if it does not exist.
        target: a key in `TARGETS`, cross-compiled by Zig; this machine by its own compiler if not given.
        sanitize: with the address and undefined-behaviour sanitizers, for tests.

    Returns:
        The library.

    Raises:
        RuntimeError: the compiler failed; the message has its output.
    """
    compiler = zig_compiler(target) if target else system_compiler() or zig_compiler(this_machine())
    target = target or this_machine()
    flags = COMMON + (SANITIZE if sanitize else [])
    library = folder / TARGETS[target].library
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        jobs = _objects(Path(scratch), {"base": []} if sanitize else VARIANTS[TARGETS[target].machine])
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda job: _run([*compiler, *flags, *job[1], "-c", job[0], "-o", job[2]]), jobs))
        linked = Path(scratch) / library.name
        system = [] if "windows" in target else ["-lm"] + ([] if "macos" in target else ["-lpthread"])
        _run([*compiler, "-shared", *(SANITIZE[5:] if sanitize else []), *(job[2] for job in jobs), "-o", str(linked),
              *system])  # fmt: skip
        shutil.copy2(linked, library)
    return library


def build_driver(folder: Path, target: str) -> Path:
    """Build a program without Python, in one file for an emulator, that calls the library's functions and checks the
    results.

    Args:
        folder: of the program.
        target: a key in `TARGETS`, of Linux.
    """
    zig = TARGETS[target].zig.split("-")[0] + "-linux-musl"
    compiler = [sys.executable, "-m", "ziglang", "cc", "-target", zig, "-static", "-fno-sanitize=undefined"]
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        jobs = _objects(Path(scratch), VARIANTS[TARGETS[target].machine])
        for source, flags, made in [*jobs, (str(HERE / "driver" / "driver.c"), [], str(Path(scratch) / "driver.o"))]:
            _run([*compiler, *COMMON, *flags, "-c", source, "-o", made])
        objects = [*(job[2] for job in jobs), str(Path(scratch) / "driver.o")]
        _run([*compiler, *objects, "-o", str(folder / "driver"), "-lm"])
    return folder / "driver"


def _objects(scratch: Path, of_kernels: Dict[str, List[str]]) -> List[Sequence]:
    """``(source, flags, object)`` of every compilation."""
    jobs = []
    for source in sorted(SOURCES.rglob("*.c")):
        name = "_".join(source.relative_to(SOURCES).with_suffix("").parts)
        kernel = source.name.endswith(".kernel.c")
        variants: Dict[str, List[str]] = of_kernels if kernel else {"": []}
        for variant, flags in variants.items():
            more = flags + ([f"-DMN_SUFFIX={variant}"] if variant else [])
            jobs.append((str(source), more, str(scratch / f"{name}_{variant}.o")))
    return jobs


def _run(command: Sequence[str]) -> str:
    """The output of a command; a RuntimeError with it if the command fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True)
    if done.returncode:
        raise RuntimeError(f"myfla-native: {' '.join(command)} failed:\n{done.stdout}")
    return done.stdout


def platform_tag(target: Optional[str]) -> str:
    """The platform part of the name of a wheel from `build`."""
    if target is None and system_compiler():
        return sysconfig.get_platform().replace("-", "_").replace(".", "_")
    return TARGETS[target or this_machine()].tag


def fingerprint() -> str:
    """A short name of everything that determines the library on this machine: the sources, this file, the compiler."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for path in sorted(SOURCES.rglob("*.[ch]")):
        digest.update(str(path.relative_to(SOURCES)).encode() + path.read_bytes())
    compiler = system_compiler() or zig_compiler(this_machine())
    digest.update(repr(compiler).encode() + _run([*compiler, "--version"]).encode())
    return digest.hexdigest()[:16]


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the library for this machine.")
    parser.add_argument("--to", type=Path, default=PACKAGE, help="folder (the package itself if not given)")
    parser.add_argument("--sanitize", action="store_true", help="with address and undefined-behaviour sanitizers")
    parser.add_argument("--target", choices=list(TARGETS), help="another platform, through ziglang")
    parser.add_argument("--driver", type=Path, metavar="FOLDER", help="build the test program for the target instead")
    given = parser.parse_args()
    if given.driver:
        print(build_driver(given.driver, given.target or this_machine()))
    else:
        print(build(given.to, given.target, given.sanitize))


if __name__ == "__main__":
    main()

"""The machine that the figures were measured on."""

import datetime
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any, Dict

import torch

import myfla

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "transformers", "fla-core", "flash-linear-attention", "rwkv_ops", "keras", "triton", "numpy")
MATRIX_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")


def describe() -> Dict[str, Any]:
    """Processor, GPU, versions, time and state of the checkout, ready for JSON."""
    facts: Dict[str, Any] = {
        "time": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "instructions": [flag for flag in MATRIX_FLAGS if flag in (_cpuinfo("flags") or _cpuinfo("Features")).split()],
        "cores": os.cpu_count(),
        "load": [round(x, 2) for x in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "myfla": myfla.__version__,
        "commit": _commit(),
        "mkl": torch.backends.mkl.is_available(),
    }
    if torch.cuda.is_available():
        facts["gpu"], facts["cuda"] = torch.cuda.get_device_name(), torch.version.cuda
    for package in PACKAGES:
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            facts[package] = None
    return facts


def summary(facts: Dict[str, Any]) -> str:
    """One line for the head of a table."""
    place = facts.get("gpu") or f"{facts['processor']} ({facts['cores']} cores; {', '.join(facts['instructions'])})"
    versions = ", ".join(f"{name} {facts[name]}" for name in PACKAGES if facts.get(name))
    load = "" if facts["load"] is None or "gpu" in facts else f"; load average at the start {facts['load'][0]:.1f}"
    return f"{place}; Python {facts['python']}, {versions}; {facts['time']}{load}"


def _cpuinfo(field: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(field)), "")


def _commit() -> str:
    """The commit, with "+" if files differ from it; "" outside a git checkout."""
    try:
        quiet = dict(stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, universal_newlines=True)
        git = dict(cwd=str(ROOT), check=True, **quiet)
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], **git).stdout.strip()
        changed = subprocess.run(["git", "status", "--porcelain", "-uno", "libs"], **git).stdout.strip()
        return commit + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return ""

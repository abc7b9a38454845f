"""The machine that a figure was measured on."""

import os
import platform
from pathlib import Path
from typing import Any, Dict

import torch

from myfla import __version__

__all__ = ["describe_machine", "machine_line"]


def describe_machine() -> Dict[str, Any]:
    """Processor, cores, GPUs, load and versions, ready for JSON."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "load": [round(x, 2) for x in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "versions": {"myfla": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }


def machine_line(facts: Dict[str, Any]) -> str:
    """One line of text."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    gpus = "".join(f", {gpu}" for gpu in facts["gpus"])
    return f"{facts['processor']}, {facts['cores']} cores, {facts['threads']} threads{gpus}; {versions}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()

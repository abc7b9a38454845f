"""Peak memory of one side, in a separate process.

    python -m benchmarks.memory '{"op": "gated delta rule", "side": "myfla", "shapes": [[1, 64, 4, 64]], ...}'

prints one JSON line for each shape. The peak is the largest resident set during the work, less that at its start;
outputs and gradients are included, inputs are not. (It is read from /proc and reset before each shape: ``getrusage``
would start from the peak of the process that forked this one. It is used where there is no /proc.)
"""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

ROOT = Path(__file__).resolve().parents[1]
FIXED_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1"}
"""Return every freed buffer to the system at once, so that memory left by one run does not hide the needs of the
next."""


def peaks(spec: Dict[str, Any], timeout: float) -> Tuple[List[float], str]:
    """Bytes for those of ``spec["shapes"]`` that could be run, and why others could not ("" if all could).

    Each shape runs in a separate process, so that buffers that one call leaves for the next count for both.

    Args:
        spec: ``op``, ``side``, ``work``, ``dtype``, ``threads`` and ``shapes``, a list of ``[B, T, H, K]``.
        timeout: seconds for all shapes together.
    """
    end = time.monotonic() + timeout
    found: List[float] = []
    for shape in spec["shapes"]:
        peak, reason = _peak({**spec, "shapes": [shape]}, max(0.0, end - time.monotonic()))
        if reason:
            return found, f"over {timeout:.0f} s" if reason == "late" else reason
        found.append(peak)
    return found, ""


def _peak(spec: Dict[str, Any], timeout: float) -> Tuple[float, str]:
    environment = {**os.environ, **FIXED_MALLOC, "PYTHONPATH": os.pathsep.join(sys.path)}  # the same myfla as here
    command = [sys.executable, "-m", "benchmarks.memory", json.dumps(spec)]
    try:
        done = subprocess.run(command, cwd=str(ROOT), env=environment, timeout=timeout, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, universal_newlines=True)
    except subprocess.TimeoutExpired:
        return 0.0, "late"
    if done.returncode:
        return 0.0, (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
    return json.loads(done.stdout.splitlines()[-1])["peak"], ""


def _status(field: str) -> float:
    """Bytes of a line of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return float(line.split()[1]) * 1024
    raise OSError(f"no {field} in /proc/self/status")


def _start() -> float:
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    except OSError:
        return _high_water()


def _high_water() -> float:
    try:
        return _status("VmHWM")
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def measure(spec: Dict[str, Any]) -> Iterator[float]:
    """The peak of each shape, in this process."""
    import torch

    from benchmarks.inputs import INPUTS, WORKS
    from benchmarks.registry import load_op

    torch.set_num_threads(spec["threads"])
    op, dtype = load_op(spec["op"], spec["side"]), getattr(torch, spec["dtype"])
    WORKS[spec["work"]](op, INPUTS[spec["op"]](1, 128, 1, 16, dtype, "cpu"))()  # loads what is loaded once
    for shape in spec["shapes"]:
        work = WORKS[spec["work"]](op, INPUTS[spec["op"]](*shape, dtype, "cpu"))
        before = _start()
        result = work()
        yield max(0.0, _high_water() - before)
        del result, work


if __name__ == "__main__":
    for peak in measure(json.loads(sys.argv[1])):
        print(json.dumps({"peak": peak}), flush=True)

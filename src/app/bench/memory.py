"""Peak memory of one work, measured in a separate process.

The work runs three times. The peak is the largest amount of memory of the process during that time, minus the amount
before: inputs and weights do not count; activations, gradients, the optimizer's moments and the state do. On a GPU it
is the peak of the allocator.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict

from app.bench.works import Place, Work, make_work

__all__ = ["measure", "peak_bytes"]

FIXED_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1"}
"""Freed buffers are returned to the system at once; otherwise the memory of a call would depend on earlier ones."""


def peak_bytes(work: Work, encoder: Dict[str, Any], place: Place, threads: int) -> int:
    """Run `measure` in a new Python.

    Raises:
        RuntimeError: the process failed; the message has its last line.
    """
    spec = {"work": work, "encoder": encoder, "place": place, "threads": threads}
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-m", "app.bench.memory"], input=json.dumps(spec), check=False, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, universal_newlines=True, env={**os.environ, **FIXED_MALLOC, "PYTHONPATH": paths},
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise RuntimeError(said[-1])
    return int(done.stdout.strip().splitlines()[-1])


def measure(work: Work, encoder: Dict[str, Any], place: Place) -> int:
    """The peak in this process, in bytes."""
    import torch

    model = place.build(encoder)
    tiny = Work(work.kind, 1, min(work.length, 8))
    make_work(tiny, model, place)()  # libraries that load with the first call do not count
    model.zero_grad(set_to_none=True)
    call = make_work(work, model, place)
    if place.device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        before = _start()
    for _ in range(3):
        call()
    peak = torch.cuda.max_memory_allocated() if place.device.startswith("cuda") else _high_water()
    return max(0, int(peak - before))


def _status(field: str) -> int:
    """Bytes of a line of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {field} in /proc/self/status")


def _start() -> int:
    """Bytes held now; resets the high-water mark to that, if the system can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    except OSError:
        return _high_water()


def _high_water() -> int:
    try:
        return _status("VmHWM")
    except OSError:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


if __name__ == "__main__":
    import torch

    given = json.loads(sys.stdin.read())
    torch.set_num_threads(given["threads"])
    print(measure(Work(*given["work"]), given["encoder"], Place(*given["place"])), flush=True)

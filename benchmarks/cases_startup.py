"""Time before the first result: importing, and the first call, each in a separate process."""

import subprocess
import sys
from pathlib import Path
from typing import Callable, Iterator, List

from benchmarks.measure import Missing, Side, Work, time_in_turn
from benchmarks.rows import Options, Row, rows_of

ROOT = Path(__file__).resolve().parents[1]
TORCH, OURS = "import torch", "import myfla.layers"
IMPORTS = {
    OURS: "import myfla, myfla.layers",
    TORCH: "import torch",
    "import transformers' Qwen3-Next": "import transformers.models.qwen3_next.modeling_qwen3_next",
}
GOAL = 1.2

FIRST_CALL = """
import sys, time
import torch
torch.set_num_threads(1)
sys.path[:0] = {paths!r}
from benchmarks.inputs import gated_inputs, forward_backward
from benchmarks.registry import load_op
work = forward_backward(load_op("gated delta rule", {side!r}), gated_inputs(1, 64, 2, 32, torch.float32, "cpu"))
one = torch.ones(1, requires_grad=True)
torch.autograd.grad(one * one, one, torch.ones(1))  # the first use of autograd costs the same for every library
times = []
for _ in range(20):
    start = time.process_time(); work(); times.append(time.process_time() - start)
print(times[0], sorted(times)[10])
"""


def run(options: Options) -> Iterator[List[Row]]:
    """Imports, then first calls."""
    rounds = 2 if options.quick else max(5, options.rounds)
    timings = time_in_turn([Side(name, _importer(code)) for name, code in IMPORTS.items()], rounds, 60.0, "cpu")
    rows = rows_of(
        timings, list(IMPORTS), False, section="startup", op="import", shape="a new process", work="import",
        dtype="", threads=1, note="wall time of the whole process",
    )  # fmt: skip
    base = rows[1].seconds
    for row in rows:
        row.ratio = row.seconds / base if row.seconds and base else None
    if rows[0].ratio:
        rows[0].goal = f"{rows[0].ratio:.2f} of importing torch (goal: at most {GOAL:g})"
    yield rows
    calls = [_first_call(side) for side in ("myfla", "transformers chunk")]
    for row in calls:
        row.ratio = row.seconds / calls[0].seconds if row.seconds and calls[0].seconds else None
    yield calls


def _importer(code: str) -> Callable[[], Work]:
    def make() -> Work:
        def work() -> None:
            done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, universal_newlines=True)
            if done.returncode:
                raise Missing((done.stderr.strip().splitlines() or ["failed"])[-1])

        return work

    return make


def _first_call(side: str) -> Row:
    """The first forward and backward pass of a process, compared with the median of the following ones."""
    code = FIRST_CALL.format(paths=[str(ROOT), str(ROOT / "libs")], side=side)
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
    done = subprocess.run([sys.executable, "-c", code], **pipes)
    row = Row("startup", "gated delta rule", "1 x 64 x 2 x 32", "first call", "float32", 1, side)
    if done.returncode:
        row.status, row.reason = "missing", (done.stderr.strip().splitlines() or ["failed"])[-1][:200]
        return row
    row.seconds, later = (float(part) for part in done.stdout.split())
    row.note = f"{side}: later calls {later * 1e3:.2f} ms"
    return row

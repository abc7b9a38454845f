"""``python -m benchmarks.stream``: rows per second of ``job=stream`` for 1, 100 and 10 000 sessions.

Each line is one job in a separate process, with the default encoder (the time does not depend on its weights): rows of
all sessions in turn from a file to a file; and, as ``live``, one session whose sender waits for each answer before it
sends the next row. The times are those that the job reports: from its first reading of the input to its last commit,
without the start of Python, and including the wait for every write to the disk. ``outside`` is the share of that time
outside the model.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Optional

ROOT = Path(__file__).resolve().parents[1]
for folder in ("src", "libs"):
    sys.path.insert(0, str(ROOT / folder))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from encoders import build_encoder  # noqa: E402
from encoders.pipeline import InputPipeline  # noqa: E402
from encoders.schema import InputSchema  # noqa: E402
from encoders.training.tasks.spec import TaskSpec  # noqa: E402
from encoders.training.tasks.task import build_task  # noqa: E402
from encoders.training.trained import save_task  # noqa: E402

WIDTH, CLASSES = 12, 9


def make_run(folder: Path, encoder: str) -> Path:
    """The folder of a run of ``job=train`` with the data that are part of the application."""
    folder.mkdir()
    torch.manual_seed(0)
    made = build_encoder({"name": encoder, "input_size": WIDTH})
    classes = list("123456789")
    made.save(folder, InputPipeline(InputSchema.unnamed(WIDTH), mean=(0.0,) * WIDTH, std=(1.0,) * WIDTH,
                                    classes=tuple(classes)))
    task = build_task(TaskSpec("classify", "classes", CLASSES, False, classes), made.config.hidden_size)
    save_task(folder, task)
    return folder


def row(session: int, values: np.ndarray) -> str:
    return json.dumps({"session": f"session-{session}", "features": values.round(4).tolist()}) + "\n"


def job(folder: Path, run: Path, threads: int, *arguments: str, **pipes: Any) -> "subprocess.Popen[bytes]":
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT / "libs")])}
    command = [sys.executable, "-m", "app", "job=stream", f"run={run}", f"job.state={folder / 'state'}",
               f"job.threads={threads}", f"hydra.run.dir={folder / 'hydra'}", *arguments]
    return subprocess.Popen(command, cwd=str(folder), env=environment, stderr=subprocess.PIPE, **pipes)


def figures(folder: Path, process: "subprocess.Popen[bytes]") -> Dict[str, Any]:
    said = process.stderr.read().decode()
    if process.wait():
        raise SystemExit(said)
    return json.loads((folder / "state" / "figures.json").read_text())


def from_file(folder: Path, run: Path, threads: int, sessions: int, rows: int, arguments: List[str]) -> Dict[str, Any]:
    draw = np.random.default_rng(0).normal(size=(rows, WIDTH))
    with open(str(folder / "in.jsonl"), "w") as file:
        file.writelines(row(i % sessions, draw[i]) for i in range(rows))
    output = f"job.output={folder / 'out.jsonl'}"
    return figures(folder, job(folder, run, threads, "job.input=in.jsonl", output, *arguments))


def live(folder: Path, run: Path, threads: int, rows: int, arguments: List[str]) -> Dict[str, Any]:
    draw = np.random.default_rng(0).normal(size=(rows, WIDTH))
    process = job(folder, run, threads, *arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    for i in range(rows):
        process.stdin.write(row(0, draw[i]).encode())
        process.stdin.flush()
        if json.loads(process.stdout.readline())["row"] != i + 1:
            raise SystemExit("an answer is missing")
    process.stdin.close()
    return figures(folder, process)


def main(given: Optional[List[str]] = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stream", description=__doc__.split(":", 1)[1])
    parser.add_argument("--encoders", default="gated_deltanet,rwkv7")
    parser.add_argument("--emit", default="prediction,embedding")
    parser.add_argument("--rows", type=int, default=100_000, help="rows of each job on files")
    parser.add_argument("--live", type=int, default=300, help="rows of the job that is answered row by row")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("more", nargs="*", help="further arguments of the job, e.g. job.memory_mb=100")
    options = parser.parse_args(given)
    print(f"torch {torch.__version__}, {options.threads} thread{'s' if options.threads > 1 else ''}, "
          f"{os.cpu_count()} cores")
    print("| encoder | emit | sessions | rows/s | outside the model | sessions on disk and back |")
    print("|---|---|---|---|---|---|")
    for encoder in options.encoders.split(","):
        for emit in options.emit.split(","):
            for sessions in ("live", 1, 100, 10_000):
                with tempfile.TemporaryDirectory() as where:
                    folder = Path(where)
                    run, arguments = make_run(folder / "run", encoder), [f"job.emit={emit}", *options.more]
                    if sessions == "live":
                        found = live(folder, run, options.threads, options.live, arguments)
                    else:
                        found = from_file(folder, run, options.threads, sessions, options.rows, arguments)
                shown = "1, live" if sessions == "live" else f"{sessions:,}".replace(",", " ")
                print(f"| {encoder} | {emit} | {shown} | {found['rows_per_s']:,.0f} | {found['outside_model']:.0%} "
                      f"| {found['evicted']} / {found['returned']} |", flush=True)


if __name__ == "__main__":
    main()

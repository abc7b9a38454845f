"""``job=bench``: tokens per second and memory of the configured encoder on this machine."""

import dataclasses
import logging
from pathlib import Path
from typing import Any, Dict, List, Optional

import torch

from app.bench.memory import peak_bytes
from app.bench.timing import Timing, time_in_turn
from app.bench.works import Place, Work, make_work
from app.devices import find_device
from app.machine import describe_machine, machine_line
from app.run_folder import RESULTS, overrides, relative, write_json
from app.sizes import sized_encoder
from app.tables import say, show_table
from cfg.app import AppConfig
from cfg.bench import BenchJobConfig

__all__ = ["run", "works"]

log = logging.getLogger(__name__)
FACTS = "bench.json"
_DEFAULT_THREADS = torch.get_num_threads()


def works(job: BenchJobConfig, streams: bool) -> List[Work]:
    """The works to measure, in the order of the table; ``streams``: whether the encoder can be fed token by token."""
    whole = [Work(kind, job.batch, length) for kind in ("prefill", "train") for length in job.lengths]
    return whole + [Work("decode", sessions, 1) for sessions in job.sessions if streams]


def run(config: AppConfig, folder: Path) -> float:
    """Measure, print a table, and write it as `FACTS`, its figures as ``metrics.json``.

    Returns:
        seconds per token of the longest prefill.

    Raises:
        ConfigError, RunError: an encoder that cannot be built, or a device that is not there.
    """
    job = config.job_as(BenchJobConfig)
    torch.set_num_threads(config.trainer.threads or _DEFAULT_THREADS)
    sized = sized_encoder(config)
    encoder, streams = dataclasses.asdict(sized), sized.needs_end is None
    place = Place(find_device(config.trainer.accelerator), config.trainer.precision)
    machine = describe_machine()
    todo = works(job, streams)
    log.info("%d works, %d rounds", len(todo), job.rounds)
    timings = time_in_turn({_name(work): make_work(work, place.build(encoder), place) for work in todo}, job.rounds)
    rows = [_row(work, timings[_name(work)], _peak(work, encoder, place) if job.memory else None) for work in todo]
    facts = {"machine": machine, **place._asdict(), "encoder": encoder, "works": rows}
    write_json(facts, folder / FACTS)
    figures = _figures(rows)
    write_json({"job": "bench", **figures, "seed": config.seed, "overrides": overrides()}, folder / RESULTS)
    _show(facts, streams)
    say(relative(folder / FACTS))
    return figures["seconds_per_token"]


def _name(work: Work) -> str:
    return f"{work.kind} {work.batch} x {work.length}"


def _peak(work: Work, encoder: Dict[str, Any], place: Place) -> Optional[int]:
    try:
        return peak_bytes(work, encoder, place, torch.get_num_threads())
    except RuntimeError as problem:
        log.warning("%s: memory could not be measured: %s", _name(work), problem)
        return None


def _row(work: Work, timing: Timing, peak: Optional[int]) -> Dict[str, Any]:
    return {**work._asdict(), "tokens_per_s": work.tokens / timing.median, "seconds": timing._asdict(),
            "peak_bytes": peak}


def _figures(rows: List[Dict[str, Any]]) -> Dict[str, float]:
    """The largest work of each kind."""
    last = {row["kind"]: row for row in rows}
    prefill = last["prefill"]
    figures = {"seconds_per_token": prefill["seconds"]["median"] / (prefill["batch"] * prefill["length"])}
    for kind, row in last.items():
        figures[f"{kind}_tokens_per_s"] = round(row["tokens_per_s"], 1)
        if row["peak_bytes"] is not None:
            figures[f"{kind}_peak_mb"] = round(row["peak_bytes"] / 1e6, 2)
    return figures


def _show(facts: Dict[str, Any], streams: bool) -> None:
    encoder = facts["encoder"]
    say(machine_line(facts["machine"]))
    load = facts["machine"]["load"]
    say(f"encoder={encoder['name']}, {encoder['direction']}, {facts['precision']} on {facts['device']}"
        + (f"; load average at the start {load[0]}" if load else "") + "\n")
    rows = []
    for row in facts["works"]:
        seconds = row["seconds"]
        spread = f"{1e3 * seconds['low']:.2f} to {1e3 * seconds['high']:.2f}"
        peak = None if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:,.1f}"
        rows.append([row["kind"], row["batch"], row["length"], f"{row['tokens_per_s']:,.0f}",
                     f"{1e3 * seconds['median']:.2f}", spread, peak])
    columns = ["work", "sequences", "tokens each", "tokens/s", "ms a call", "half of all calls", "peak MB"]
    show_table(columns, rows, right=columns[1:])
    if not streams:
        say("No decoding: this encoder reads whole sequences; encoder.direction=causal can be fed token by token.")

"""``job=stream``: rows of many sessions in, one embedding or prediction per row out, state on disk."""

import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any, Optional

import torch

from app.errors import RunError
from app.run_folder import overrides, write_json
from app.streaming.engine import Engine
from app.streaming.model import load_model
from app.streaming.parquet import ParquetSink
from app.streaming.service import Service
from app.streaming.sinks import FileSink, Sink, StdoutSink
from app.streaming.store import Store
from cfg.app import AppConfig
from cfg.stream import StreamJobConfig
from cfg.validation import config_error

__all__ = ["run"]

FIGURES = "figures.json"


def run(config: AppConfig, folder: Path) -> float:
    """Stream until the input ends, or until a signal asks to stop.

    Returns:
        seconds per row.

    Raises:
        ConfigError, RunError: before a row is read; or later, if the state, input or output is lost.
    """
    job = config.job_as(StreamJobConfig)
    if config.run is None:
        raise config_error("run", "must be the folder of a finished run with a causal encoder", None,
                           "python -m app job=stream run=outputs/app/...")
    for override in overrides():
        key = override.lstrip("+~").split("=", 1)[0].split("@", 1)[0]
        if key.split(".", 1)[0] in ("encoder", "data", "trainer"):
            raise config_error(key, "must be left out with job=stream", override, "they come from the run")
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    output = _own_stdout()  # first: loading a model logs which backend computes it
    model = load_model(Path(config.run), job.emit, job.device)
    state = Path(job.state) if job.state is not None else Path(config.run) / "stream_state"
    facts = {"model": model.key, "emit": job.emit, "input_size": model.input_size,
             "state": [[list(t.shape[1:]), str(t.dtype)] for t in model.fresh]}
    store = Store(state, facts)
    sink: Optional[Sink] = None
    service: Optional[Service] = None
    try:
        sink = _open_sink(job, state, store, output)
        service = Service(job, store, Engine(model, store, int(job.memory_mb * (1 << 20)), job.emit), sink, _say)
        _stop_on_signals(service)
        figures = service.run()
        sink.close()
        store.close()
    except BaseException:
        _leave(store, sink, service is not None and service.begun)
        raise
    write_json(figures, state / FIGURES)
    _say("{rows} rows, {malformed} malformed, {rows_per_s:,.0f} rows/s, {share:.0%} of the time outside the model, "
         "{sessions_in_memory} sessions in memory ({evicted} went to disk, {returned} came back)".format(
             share=figures["outside_model"], **figures))
    return figures["busy_seconds"] / max(figures["rows"], 1)


def _leave(store: Store, sink: Optional[Sink], begun: bool) -> None:
    """Close everything after an error, ignoring further errors; a start that was refused leaves no files."""
    if sink is not None:
        sink.abandon(begun)
    if begun:
        store.close(clean=False)
    else:
        store.discard()


def _open_sink(job: StreamJobConfig, state: Path, store: Store, output: Any) -> Sink:
    facts = store.get("sink")
    kind = StdoutSink if job.output is None else ParquetSink if job.output.endswith(".parquet") else FileSink
    if facts is not None and facts["kind"] != kind.kind and store.outbox():
        raise RunError(f"job.output must be as before, {facts['kind']}, until the rows that wait for it are delivered; "
                       f"got {job.output!r}; run once more with the old job.output and no new rows")
    return StdoutSink(state, facts, output) if job.output is None else kind(Path(job.output), facts)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _own_stdout() -> int:
    """A descriptor of standard output that only the output uses; everything else that is printed goes to standard
    error."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stdout:
            handler.setStream(sys.stderr)
    sys.stdout.flush()
    output = os.dup(1)
    os.dup2(2, 1)
    return output


def _stop_on_signals(service: Service) -> None:
    """The first signal ends the job after the current step; a second one ends it at once, without losing data."""

    def stop(number: int, frame: Any) -> None:
        service.stopping = True
        signal.signal(number, signal.SIG_DFL)

    for name in ("SIGINT", "SIGTERM"):
        signal.signal(getattr(signal, name), stop)

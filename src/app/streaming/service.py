"""The loop of ``job=stream``: read the available lines, compute a step, commit, deliver."""

import os
import time
import zlib
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

import torch

from app.errors import RunError
from app.streaming.engine import Engine
from app.streaming.lines import Line, Lines, open_file, open_stdin
from app.streaming.rows import Reader, csv_reader, header_features, json_reader, looks_like_header
from app.streaming.sinks import Sink
from app.streaming.store import Position, Store
from cfg.stream import StreamJobConfig

__all__ = ["Service"]


class Service:
    """One input, one engine and one sink, kept consistent.

    Args:
        config: of the job.
        store, engine, sink: see their modules.
        say: shows a line to the operator; never on standard output.

    Attributes:
        stopping: set it to end after the current step.
        begun: whether the first commit has been made; before it, the input may still be refused.
    """

    def __init__(self, config: StreamJobConfig, store: Store, engine: Engine, sink: Sink,
                 say: Callable[[str], None]) -> None:
        self.config, self.store, self.engine, self.sink, self._say = config, store, engine, sink, say
        self.stopping = self.begun = False
        self.rows = self.malformed = 0
        self._name = "-" if config.input is None else os.path.realpath(config.input)
        self._position = store.position(self._name)
        self._reader: Optional[Reader] = None
        engine.complain = self._complain
        self._first = 1  # number of the next line to be read
        self._pending = False  # something is not yet committed
        self._waited = 0.0
        now = time.perf_counter()
        self._started = self._committed = self._snapped = now

    def run(self) -> Dict[str, Any]:
        """Until the input ends or `stopping` is set.

        Returns:
            Figures of this run.
        """
        with torch.inference_mode():
            self.engine.repeat()
            lines = self._open()
            self._commit()  # delivers what a killed process could not, and claims a new output file
            self.begun = True
            while not self.stopping:
                if not self._turn(lines) and lines.ended:
                    break
            self._commit(snapshot=True)
        if lines.ended and self._first - 1 < self._position.row:
            self._say(f"the input ended at row {self._first - 1}, before row {self._position.row}, the last that is "
                      "done: nothing was new; for new rows, use job.first_row=next")
        return self._figures()

    def _turn(self, lines: Lines) -> bool:
        """Read the available lines; commit if it is time. False if there were none."""
        start = time.perf_counter()
        found = lines.take(self.config.batch_rows, wait=not self._pending)
        if not found:
            if self._pending:
                self._commit()
            else:
                self._waited += time.perf_counter() - start
                self._rest()
            return False
        self._process(found)
        now = time.perf_counter()
        if now - self._snapped >= self.config.snapshot_seconds:
            self._commit(snapshot=True)
        elif now - self._committed >= self.config.commit_seconds:
            self._commit()
        return True

    def _rest(self) -> None:
        """While idle: write the states, if it is time and some have changed."""
        if self.engine.pool.dirty.any() and time.perf_counter() - self._snapped >= self.config.snapshot_seconds:
            self._commit(snapshot=True)

    def _process(self, lines: List[Line]) -> None:
        if self._reader is None:
            self._reader, header = self._choose_reader(lines[0])
            if header:  # lines have numbers only if the input is sent from its beginning
                lines, self._first = lines[1:], max(self._first, 2)
        first = self._first
        self._first += len(lines)
        done = self._position.row - first + 1
        if done > 0:  # sent again
            self._check_again(lines, done)
            lines, first = lines[done:], first + done
        if not lines:
            return
        rows = self._reader(lines, first)
        for output in self.engine.step(rows):
            self.sink.add(output)
            self.rows += len(output.sessions)
        self.malformed = self._reader.malformed + self.engine.refused
        last, read = lines[-1], sum(line.size for line in lines)
        self._position = Position(first + len(lines) - 1, self._position.offset + read, last.size, _crc(last))
        self._pending = True

    def _commit(self, snapshot: bool = False) -> None:
        if snapshot:
            self.engine.snapshot()
            self._snapped = time.perf_counter()
        again = True
        while again:
            self.store.put("sink", self.sink.stage(self.store))
            self.store.put("seq", self.engine.seq)
            self.store.move(self._name, self._position)
            self.store.commit()
            again = self.sink.release(self.store, final=snapshot)
        self._pending = False
        self._committed = time.perf_counter()

    # ---- the input -------------------------------------------------------------------------------------------------

    def _open(self) -> Lines:
        done = self._position
        if self.config.input is None:
            self._first = done.row + 1 if self.config.first_row == "next" else self.config.first_row
            if self._first > done.row + 1:
                raise RunError(f"job.first_row must be at most {done.row + 1}, the next row; got {self._first}: the "
                               "rows between would be lost")
            if done.row and self._first <= done.row:
                self._say(f"rows up to {done.row} are done and are skipped if they come again")
            return open_stdin()
        path = Path(self.config.input)
        first = open_file(path).take(1, wait=True)
        if first:
            self._reader, header = self._choose_reader(first[0])
            if header and not done.row:
                done = self._position = Position(1, first[0].size, first[0].size, _crc(first[0]))
        if done.row:
            self._check_file(path, done)
            self._first = done.row + 1
        return open_file(path, done.offset)

    def _choose_reader(self, first: Line) -> "tuple[Reader, bool]":
        """The reader for the format, and whether the first line is a header."""
        config, width = self.config, self.engine.model.input_size
        text = (first.data or b"").decode("utf-8-sig", "replace")
        ending = "" if config.input is None else Path(config.input).suffix.lower()
        is_csv = config.format == "csv"
        if config.format == "auto" and ending not in (".json", ".jsonl", ".ndjson"):
            is_csv = ending == ".csv" or looks_like_header(text, config.session)
        pipeline = self.engine.model.pipeline
        schema = None if pipeline is None else pipeline.schema
        chosen = config.features
        if chosen is not None and schema is not None and set(chosen) == set(schema.names):
            chosen = schema.names  # the run has no such names: the order counts
        if is_csv:
            chosen = chosen or header_features(text, config.session, schema, config.ignore)
            parse = csv_reader(text, config.session, chosen, width, self.engine.model.missing)
        else:
            if chosen is not None and len(chosen) != width:
                raise RunError(f"job.features must be {width} names, as the encoder reads; got {len(chosen)}")
            parse = json_reader(config.session, chosen, schema, config.ignore)
        return Reader(parse, width, self._complain, self.engine.model.missing), is_csv

    def _complain(self, number: int, reason: str) -> None:
        self._say(f"line {number}: {reason}; the line is skipped")

    def _check_again(self, lines: List[Line], done: int) -> None:
        """Check that the last answered line, if it is sent again, is unchanged."""
        if done <= len(lines):
            last, want = lines[done - 1], self._position
            if (last.size, _crc(last)) != (want.size, want.crc):
                raise RunError(f"job.first_row must number the rows as before; got another row {want.row} than the one "
                               f"that is done; send the same rows again, or new ones with job.first_row={want.row + 1}")

    @staticmethod
    def _check_file(path: Path, done: Position) -> None:
        """Check that the last answered line is unchanged in the file."""
        got = open_file(path, max(0, done.offset - done.size)).take(1, wait=True)
        last = got[0] if got else Line(b"", 0)
        if (last.size, _crc(last)) != (done.size, done.crc):
            raise RunError(f"job.input must be the file that was read before, or a longer one; got {str(path)!r}, "
                           f"whose line {done.row} is another; give the new rows in a file of another name")

    def _figures(self) -> Dict[str, Any]:
        busy = time.perf_counter() - self._started - self._waited
        engine = self.engine
        return {
            "rows": self.rows,
            "malformed": self.malformed,
            "repeated": engine.repeated,
            "rows_per_s": round(self.rows / max(busy, 1e-9), 1),
            "busy_seconds": round(busy, 6),
            "model_seconds": round(engine.model_seconds, 6),
            "outside_model": round(1 - engine.model_seconds / max(busy, 1e-9), 4),
            "sessions_in_memory": len(engine.pool),
            "bytes_per_session": engine.pool.bytes_each,
            "evicted": engine.evicted,
            "returned": engine.returned,
        }


def _crc(line: Line) -> int:
    return zlib.crc32(line.data or b"")

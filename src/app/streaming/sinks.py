"""Outputs that lose no line and write none twice when the process is killed. A sink has three steps: `add` the results
of a step; `stage`, just before a commit, returns the data that the commit must store; `release` follows the commit.
JSON lines in a file are written first, and their length is committed: a restart cuts off everything that was not
committed. For standard output, which cannot be cut, lines are committed first and then written; a few bytes of shared
memory on disk record the position: see `StdoutSink`.
"""

import mmap
import os
import stat
import struct
from json.encoder import encode_basestring_ascii as quoted
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

import numpy as np

from app.errors import RunError
from app.locks import lock_file
from app.made_folders import missing_folders, remove_folders
from app.streaming.store import Store
from myfla.utils.regular import check_regular

__all__ = ["FileSink", "Output", "Sink", "StdoutSink", "cannot_write", "joined", "json_lines"]


class Output(NamedTuple):
    """The results of one step, in the order of the input.

    Attributes:
        lines: ``[n]`` int64, line in the input.
        sessions: n names.
        steps: ``[n]`` int64, number of the row within its session, from 1.
        embedding: ``[n, hidden_size]``, or None.
        classes, probability: ``n`` names and ``[n]``, or None.
        probabilities: ``[n, K]`` of all classes, or None.
        values: ``[n, K]``, or None.
        names: of the K classes or values.
    """

    lines: np.ndarray
    sessions: List[str]
    steps: np.ndarray
    embedding: Optional[np.ndarray] = None
    classes: Optional[List[str]] = None
    probability: Optional[np.ndarray] = None
    probabilities: Optional[np.ndarray] = None
    values: Optional[np.ndarray] = None
    names: Sequence[str] = ()

    def finite(self) -> np.ndarray:
        """``[n]`` bool: the rows whose numbers are all finite."""
        good = np.ones(len(self.lines), bool)
        for numbers in (self.embedding, self.probabilities, self.values):
            if numbers is not None:
                good &= np.isfinite(numbers).reshape(len(good), -1).all(1)
        return good


def joined(outputs: Sequence[Output]) -> Output:
    """Joins the outputs of parts of a step, in the order of the input."""
    order = np.argsort(np.concatenate([one.lines for one in outputs]), kind="stable")

    def column(name: str) -> Any:
        parts = [getattr(one, name) for one in outputs]
        if parts[0] is None:
            return None
        if isinstance(parts[0], list):
            flat = [item for part in parts for item in part]
            return [flat[place] for place in order.tolist()]
        return np.concatenate(parts)[order]

    return outputs[0]._replace(**{name: column(name) for name in Output._fields if name != "names"})


def json_lines(output: Output) -> bytes:
    """One JSON object for each row; numbers have nine digits, from which a float32 can be read back exactly.

    Example:
        >>> one = Output(np.array([7]), ["a"], np.array([2]), classes=["x"], probability=np.array([0.75]),
        ...              probabilities=np.array([[0.75, 0.25]]), names=["x", "y"])
        >>> json_lines(one).decode()[38:]
        '"prediction": "x", "probability": 0.75, "probabilities": {"x": 0.75, "y": 0.25}}\\n'
    """
    head = zip(output.lines.tolist(), map(quoted, output.sessions), output.steps.tolist())
    if output.values is not None:
        form = '{"row": %d, "session": %s, "step": %d, "prediction": {' + _by_name(output.names, "%.15g") + "}}\n"
        return "".join([form % (*row, *values) for row, values in zip(head, output.values.tolist())]).encode("ascii")
    if output.classes is not None and output.probability is not None and output.probabilities is not None:
        body = zip(head, map(quoted, output.classes), output.probability.tolist(), output.probabilities.tolist())
        form = '{"row": %d, "session": %s, "step": %d, "prediction": %s, "probability": %.9g, "probabilities": {'
        form += _by_name(output.names, "%.9g") + "}}\n"
        return "".join([form % (*row, name, share, *all_of_them) for row, name, share, all_of_them in body]
                       ).encode("ascii")
    if output.embedding is None:
        raise ValueError("an output must be classes with all probabilities, values, or embeddings")
    form = '{"row": %d, "session": %s, "step": %d, "embedding": [' + ", ".join(["%.9g"] * output.embedding.shape[1])
    form += "]}\n"
    return "".join([form % (*row, *values) for row, values in zip(head, output.embedding.tolist())]).encode("ascii")


def _by_name(names: Sequence[str], number: str) -> str:
    return ", ".join(f"{quoted(name)}: ".replace("%", "%%") + number for name in names)


def cannot_write(where: str, problem: OSError) -> RunError:
    """The error for output that can no longer be written."""
    return RunError(f"{where} cannot be written: {problem.strerror or problem}; correct that, e.g. free some "
                    "space on the disk, and start the job again: it continues after the last row that it has answered")


class Sink:
    """The interface of all sinks; `facts` are stored under the key ``sink`` and given back at a restart."""

    kind = ""

    def add(self, output: Output) -> None:
        """Add the output of a step."""
        raise NotImplementedError

    def stage(self, store: Store) -> Dict[str, Any]:
        """Prepare everything that was added for the commit, and return the facts of the sink."""
        raise NotImplementedError

    def release(self, store: Store, final: bool = False) -> bool:
        """After the commit: deliver.

        Args:
            final: also complete open files: at the end, and from time to time.

        Returns:
            Whether another commit is needed.
        """
        return False

    def close(self) -> None:
        """Close files."""

    def abandon(self, begun: bool) -> None:
        """Close files after an error and ignore further ones.

        Args:
            begun: whether something was committed; else new files are removed.
        """


class FileSink(Sink):
    """JSON lines in a file.

    Args:
        path: the file; made if it does not exist, continued if it belongs to this state.
        facts: the last result of `stage`, from the store; None at the first start.

    Raises:
        RunError: the file belongs to another job, was shortened, or cannot be written.
    """

    kind = "file"
    BUFFER = 1 << 16  # bytes

    def __init__(self, path: Path, facts: Optional[Dict[str, Any]]) -> None:
        self._path = os.path.realpath(str(path))
        self._made, self._new = missing_folders(path.parent), not path.exists()
        own = facts if facts is not None and facts.get("path") == self._path else None
        try:
            if not self._new:
                check_regular(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115 - closed by release()
        except OSError as problem:
            remove_folders(self._made)
            raise RunError(f"job.output must be a file that can be written; got {self._path!r}: "
                           f"{problem.strerror}") from None
        try:
            if not lock_file(self._file):
                raise RunError(f"job.output must be a file that no other job writes to; got {self._path!r}; end the "
                               "other job, or use another file")
            size = os.fstat(self._file.fileno()).st_size
            if own is None and size:
                raise RunError(f"job.output must be a new file or the one of this state; got {self._path!r}, which "
                               f"has {size} bytes of something else")
            if own is not None and not self._new and size < own["length"]:
                raise RunError(f"job.output must hold what was written to it; got {self._path!r} with {size} bytes "
                               f"of {own['length']}; put it back, or move it away to begin a new one")
            self._length = own["length"] if own is not None and not self._new else 0
            self._file.truncate(self._length)  # what was written after the last commit is written again
        except OSError as problem:
            self.abandon(False)
            raise cannot_write(f"job.output={self._path!r}", problem) from None
        except RunError:
            self._file.close()
            raise
        self._waiting = bytearray()

    def add(self, output: Output) -> None:
        data = json_lines(output)
        self._waiting += data
        self._length += len(data)
        if len(self._waiting) >= self.BUFFER:
            self._write()

    def stage(self, store: Store) -> Dict[str, Any]:
        self._write()
        try:
            os.fsync(self._file.fileno())
        except OSError as problem:
            raise cannot_write(f"job.output={self._path!r}", problem) from None
        return {"kind": self.kind, "path": self._path, "length": self._length}

    def close(self) -> None:
        self._file.close()

    def abandon(self, begun: bool) -> None:
        self._file.close()
        if not begun and self._new and os.path.exists(self._path):
            os.unlink(self._path)
            remove_folders(self._made)

    def _write(self) -> None:
        view = memoryview(bytes(self._waiting))
        self._waiting.clear()
        try:
            while view:
                view = view[self._file.write(view) :]
        except OSError as problem:
            raise cannot_write(f"job.output={self._path!r}", problem) from None


class StdoutSink(Sink):
    """JSON lines on standard output.

    Lines are kept in the store until they are written. They are written in pieces of complete lines of at most 4096
        bytes, which a pipe accepts completely or not at all. After every piece the position is recorded in memory
        shared with a file, which survives a kill. If the process is killed in the instant between a piece and its
        record, the piece is written again, byte for byte: a reader that must not process a row twice skips lines whose
        ``row`` is not larger than the last. In a regular file (``>> FILE``) this does not happen, because its size
        shows the position.

    Args:
        folder: the state folder.
        facts: as for `FileSink`.
        descriptor: the descriptor of standard output.
    """

    kind = "standard output"
    PIECE = 4096

    def __init__(self, folder: Path, facts: Optional[Dict[str, Any]], descriptor: int = 1) -> None:
        self._out, self._waiting = descriptor, bytearray()
        self._end = int((facts or {}).get("end", 0))
        self._note = self._map(folder / "delivered")
        self._done = min(struct.unpack("<Q", self._note[:8])[0], self._end)
        self._file = self._identify()
        if self._file is not None and not lock_file(descriptor):
            raise RunError("standard output must be a file that no other job writes to; end the other job, or use "
                           "another file")
        if self._file is not None and facts is not None and facts.get("file") == self._file["file"]:
            self._catch_up(facts)
        if self._file is not None:
            self._file["base"] = os.fstat(descriptor).st_size - self._done
        self._note[:8] = struct.pack("<Q", self._done)  # an old record must not count output that is not yet written
        self._note.flush()

    def add(self, output: Output) -> None:
        self._waiting += json_lines(output)

    def stage(self, store: Store) -> Dict[str, Any]:
        store.delivered(self._done)
        if self._waiting:
            store.post(self._end, len(self._waiting), bytes(self._waiting))
            self._end += len(self._waiting)
            self._waiting.clear()
        return {"kind": self.kind, "end": self._end, **(self._file or {})}

    def release(self, store: Store, final: bool = False) -> bool:
        for start, size, data in store.outbox():
            if self._done < start + size:
                self._write(data, self._done - start)
        return final and bool(store.outbox())  # one more commit takes them out of the store

    def close(self) -> None:
        self._note.close()

    def _write(self, data: bytes, place: int) -> None:
        view, start = memoryview(data), self._done - place
        while place < len(data):
            end = place + self.PIECE
            end = len(data) if end >= len(data) else data.rfind(b"\n", place, end) + 1
            if end <= place:  # a line longer than a piece
                end = data.index(b"\n", place) + 1
            while place < end:
                try:
                    place += os.write(self._out, view[place:end])
                except BrokenPipeError:
                    raise RunError("standard output was closed by its reader; the rows it did not get come at the next "
                                   "start") from None
                except OSError as problem:
                    raise cannot_write("standard output", problem) from None
            self._done = start + place
            self._note[:8] = struct.pack("<Q", self._done)

    def _catch_up(self, facts: Dict[str, Any]) -> None:
        """Correct the position by the size of a file that only this job writes to; it may be one piece further."""
        there = os.fstat(self._out).st_size - int(facts["base"])
        if self._done < there <= self._end:
            self._done = there

    def _identify(self) -> Optional[Dict[str, Any]]:
        about = os.fstat(self._out)
        return {"file": [about.st_dev, about.st_ino]} if stat.S_ISREG(about.st_mode) else None

    @staticmethod
    def _map(path: Path) -> mmap.mmap:
        if path.exists():
            check_regular(path)
        with open(str(path), "a+b") as file:
            if file.seek(0, os.SEEK_END) < 8:
                file.truncate(8)
            return mmap.mmap(file.fileno(), 8)

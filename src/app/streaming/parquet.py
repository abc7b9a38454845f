"""Output as a folder of Parquet files, each written completely.

Rows are kept in the store, where a commit puts them, until there are enough for a file or it is time for one. A file
gets its name when it is complete; if the process is killed before the commit, it is made again from the same rows.
"""

import io
import os
from pathlib import Path
from typing import Any, Dict, List, Optional

import numpy as np

from app.errors import RunError
from app.locks import FolderLock
from app.made_folders import missing_folders, remove_folders
from app.streaming.sinks import Output, Sink, cannot_write
from app.streaming.store import Store

__all__ = ["ParquetSink"]


class ParquetSink(Sink):
    """Files ``part-00000001.parquet``, ... in a folder; columns ``row``, ``session``, ``step``, and ``prediction`` with
    ``probability`` and ``probability NAME`` for each class, ``predicted NAME`` for each value, or ``embedding``.

    Args:
        path: the folder; made if it does not exist, continued if it belongs to this state.
        facts: the last result of `stage`, from the store; None at the first start.
        part_rows: number of rows in a full file.

    Raises:
        RunError: pyarrow is not installed, the folder belongs to another job, or it cannot be written.
    """

    kind = "parquet"

    def __init__(self, path: Path, facts: Optional[Dict[str, Any]], part_rows: int = 1 << 18) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise RunError(f"job.output={str(path)!r} needs the package 'pyarrow'; pip install 'myfla[parquet]', or "
                           "leave out .parquet for JSON lines") from None
        self._arrow, self._parquet = pyarrow, pyarrow.parquet
        self._path, self._part_rows = path.resolve(), part_rows
        own = facts if facts is not None and facts.get("path") == str(self._path) else None
        self._parts = own["parts"] if own else 0
        self._end = int((facts or {}).get("end", 0))
        self._done = int((facts or {}).get("done", 0))
        self._waiting: List[Any] = []
        self._made = missing_folders(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = FolderLock(path)
            if not self._lock.take():
                raise RunError(f"job.output must be a folder that no other job writes to; got {self._path!r}; end the "
                               "other job, or use another folder")
            found = sorted(path.glob("part-*.parquet"))
            if own is None and found:
                raise RunError(f"job.output must be a new folder or the one of this state; got {str(self._path)!r}, "
                               f"which has {found[0].name} of something else")
            for file in found[self._parts :]:
                file.unlink()  # written, but not committed
            for file in path.glob(".part-*"):
                file.unlink()
        except OSError as problem:
            remove_folders(self._made)
            raise RunError(f"job.output must be a folder that can be written; got {str(self._path)!r}: "
                           f"{problem.strerror}") from None
        except RunError:
            self._lock.leave()
            raise

    def add(self, output: Output) -> None:
        pa = self._arrow
        columns = {"row": pa.array(output.lines), "session": pa.array(output.sessions, pa.string()),
                   "step": pa.array(output.steps)}
        if output.values is not None:
            for name, values in zip(output.names, output.values.T):
                columns[f"predicted {name}"] = pa.array(values, pa.float64())
        elif output.embedding is None:
            columns["prediction"] = pa.array(output.classes, pa.string())
            columns["probability"] = pa.array(output.probability, pa.float32())
            for name, shares in zip(output.names, np.asarray(output.probabilities).T):
                columns[f"probability {name}"] = pa.array(shares, pa.float32())
        else:
            flat = pa.array(output.embedding.reshape(-1), pa.float32())
            columns["embedding"] = pa.FixedSizeListArray.from_arrays(flat, output.embedding.shape[1])
        self._waiting.append(pa.table(columns))

    def stage(self, store: Store) -> Dict[str, Any]:
        store.delivered(self._done)
        if self._waiting:
            table = self._arrow.concat_tables(self._waiting)
            file = io.BytesIO()
            with self._arrow.ipc.new_stream(file, table.schema) as writer:
                writer.write_table(table)
            store.post(self._end, len(table), file.getvalue())
            self._end += len(table)
            self._waiting = []
        return {"kind": self.kind, "path": str(self._path), "parts": self._parts, "end": self._end, "done": self._done}

    def release(self, store: Store, final: bool = False) -> bool:
        waiting = self._end - self._done
        if not waiting or (waiting < self._part_rows and not final):
            return False
        tables = [self._arrow.ipc.open_stream(data).read_all() for _, _, data in store.outbox()]
        name = f"part-{self._parts + 1:08d}.parquet"
        hidden = self._path / f".{name}"
        try:
            with open(str(hidden), "wb") as file:
                self._parquet.write_table(self._arrow.concat_tables(tables).combine_chunks(), file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(str(hidden), str(self._path / name))
        except OSError as problem:
            raise cannot_write(f"job.output={str(self._path)!r}", problem) from None
        self._parts, self._done = self._parts + 1, self._end
        return True

    def close(self) -> None:
        self._lock.leave()

    def abandon(self, begun: bool) -> None:
        self._lock.leave()
        if not begun:
            remove_folders(self._made)

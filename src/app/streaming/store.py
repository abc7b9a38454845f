"""The state folder: one SQLite file in which input, output and states advance together. One transaction contains
everything that must stay consistent when the process is killed: the position in the input, the output, and the journal
of the rows since the states were last written. After a kill, the states are restored by repeating the journal. States
that were written early, because their session was idle, record how many rows they contain, so that no row counts twice.
SQLite guarantees that a transaction survives kills and power failures completely or not at all.

Damage to the file is detected: SQLite checks its own structure when the folder is opened (a third of a second
for a gigabyte), and every row carries a CRC-32 of its content.
"""

import json
import os
import sqlite3
import zlib
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Sequence, Tuple

import numpy as np

from app.errors import RunError
from app.made_folders import missing_folders, remove_folders
from app.streaming.pool import Packed
from myfla.utils.regular import check_regular, open_regular

__all__ = ["Journal", "Position", "Store"]

FORMAT = "myfla.stream"
VERSION = 4
FILE = "state.sqlite"
_MAGIC = b"SQLite format 3\0"
_MANY = 500  # values in one query; older SQLite takes 999
_DAMAGE = (sqlite3.Error, UnicodeDecodeError)  # SQLite's message may contain any bytes of a damaged schema

_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL, seal INTEGER);
CREATE TABLE inputs (name TEXT PRIMARY KEY, row INTEGER, offset INTEGER, size INTEGER, crc INTEGER, seal INTEGER);
CREATE TABLE sessions (id INTEGER PRIMARY KEY, name TEXT UNIQUE, steps INTEGER, seq INTEGER, seal INTEGER, state BLOB);
CREATE TABLE journal (seq INTEGER PRIMARY KEY, seal INTEGER, ids BLOB, features BLOB);
CREATE TABLE outbox (id INTEGER PRIMARY KEY, start INTEGER, size INTEGER, seal INTEGER, data BLOB);
"""


class Position(NamedTuple):
    """The position in an input.

    Attributes:
        row: lines consumed.
        offset: bytes consumed.
        size, crc: length and CRC-32 of the last line consumed, by which it is recognised.
    """

    row: int = 0
    offset: int = 0
    size: int = 0
    crc: int = 0


class Journal(NamedTuple):
    """Rows of one step, in the order of the input.

    Attributes:
        seq: number of the first one, over all inputs and sessions.
        ids: ``[n]`` int64, the sessions.
        features: ``[n, input_size]`` float64, as they were sent.
    """

    seq: int
    ids: np.ndarray
    features: np.ndarray


class Store:
    """The state folder, open for one job.

    Args:
        folder: made if it is missing.
        facts: the model and sizes to which the states belong; a folder with other facts is refused.

    Raises:
        RunError: the folder belongs to another model, is used by another job, is damaged or cannot be written.
    """

    def __init__(self, folder: Path, facts: Dict[str, Any]) -> None:
        self.folder, self._made = folder, missing_folders(folder)
        self._new = not os.path.lexists(str(folder / FILE))
        self._db: Any = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _check_head(folder / FILE)
            self._db = sqlite3.connect(str(folder / FILE), isolation_level=None, timeout=1.0, check_same_thread=False)
        except (sqlite3.Error, OSError) as problem:
            remove_folders(self._made)
            raise self._refuse(problem) from None
        try:
            for pragma in ("locking_mode=EXCLUSIVE", "journal_mode=WAL", "synchronous=FULL"):
                self._do(f"PRAGMA {pragma}")
            self._do("BEGIN IMMEDIATE")
            self._open({"format": FORMAT, "version": VERSION, **facts})
            self.commit()
        except BaseException:
            self.discard()
            raise

    def _open(self, facts: Dict[str, Any]) -> None:
        if self._ask("SELECT 1 FROM sqlite_master"):
            found = [text for text, in self._ask("PRAGMA integrity_check(1)")]
            if found != ["ok"]:
                raise self._refuse(found[0])
        else:
            for statement in _TABLES.strip().splitlines():
                self._do(statement)
            self.put("facts", facts)
        found = self.get("facts")
        for field, wanted in facts.items():
            got = None if not isinstance(found, dict) else found.get(field)
            if got != wanted:
                raise RunError(f"job.state={str(self.folder)!r} must belong to this run; its {field} is {got!r}, not "
                               f"{wanted!r}; use another folder, or remove this one to begin anew")

    # ---- one transaction after another -----------------------------------------------------------------------------

    def commit(self) -> None:
        """Make everything since the last commit permanent, all of it or nothing."""
        if not (self.folder / FILE).exists():  # SQLite would go on in a file without a name
            raise RunError(self._lost(""))
        self._do("COMMIT")
        self._do("BEGIN IMMEDIATE")

    def close(self, clean: bool = True) -> None:
        """Close; data that were not committed are lost.

        Args:
            clean: also fold SQLite's log into its file.
        """
        try:
            if self._db.in_transaction:  # SQLite ends one by itself where the disk is full
                self._do("ROLLBACK")
            if clean:
                self._do("PRAGMA wal_checkpoint(TRUNCATE)")
        except RunError:
            if clean:
                raise
        finally:
            self._db.close()

    def discard(self) -> None:
        """Close, and remove the folder if it was made for this job."""
        self._db.close()
        if self._new:
            for name in (FILE, f"{FILE}-wal", f"{FILE}-shm", f"{FILE}-journal", "delivered"):
                if os.path.lexists(str(self.folder / name)):
                    (self.folder / name).unlink()
            remove_folders(self._made)

    # ---- facts -----------------------------------------------------------------------------------------------------

    def get(self, key: str) -> Any:
        """A value that `put` stored, or None."""
        found = self._ask("SELECT value, seal FROM meta WHERE key = ?", (key,))
        if not found:
            return None
        (value, seal), = found
        self._check(seal, (key, value), f"the value of {key!r}")
        return json.loads(value)

    def put(self, key: str, value: Any) -> None:
        """Store a value that JSON can hold."""
        text = json.dumps(value)
        self._do("INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", (key, text, _seal(key, text)))

    def position(self, name: str) -> Position:
        """The position in the input of that name."""
        found = self._ask("SELECT row, offset, size, crc, seal FROM inputs WHERE name = ?", (name,))
        if not found:
            return Position()
        (*position, seal), = found
        self._check(seal, (name, *position), f"the position in {name!r}")
        return Position(*position)

    def move(self, name: str, position: Position) -> None:
        """Store the position in the input of that name."""
        self._do("INSERT OR REPLACE INTO inputs VALUES (?, ?, ?, ?, ?, ?)", (name, *position, _seal(name, *position)))

    # ---- sessions --------------------------------------------------------------------------------------------------

    def fetch(self, names: Sequence[str]) -> List[Packed]:
        """Sessions by their different names; unknown ones are added, with the state ``b""``."""
        found: Dict[str, Packed] = {}
        for start in range(0, len(names), _MANY):
            found.update(self._fetch(names[start : start + _MANY]))
        new = [name for name in names if name not in found]
        if new:
            (first,), = self._ask("SELECT COALESCE(MAX(id), 0) + 1 FROM sessions")
            made = [(name, Packed(number, 0, 0, b"")) for number, name in enumerate(new, first)]
            query = "INSERT INTO sessions (id, name, steps, seq, seal, state) VALUES (?, ?, ?, ?, ?, ?)"
            self._do(query, ((s.id, name, s.steps, s.seq, _seal(*s), s.state) for name, s in made), many=True)
            found.update(made)
        return [found[name] for name in names]

    def names(self, ids: Iterable[int]) -> List[str]:
        """Names of sessions by number."""
        query = "SELECT name FROM sessions WHERE id = ?"
        return [self._ask(query, (number,))[0][0] for number in ids]

    def keep(self, sessions: Iterable[Packed]) -> None:
        """Write the states of sessions."""
        rows = ((s.steps, s.seq, _seal(*s), s.state, s.id) for s in sessions)
        self._do("UPDATE sessions SET steps = ?, seq = ?, seal = ?, state = ? WHERE id = ?", rows, many=True)

    def _fetch(self, names: Sequence[str]) -> Iterator[Tuple[str, Packed]]:
        places = ", ".join("?" * len(names))
        query = f"SELECT name, seal, id, steps, seq, state FROM sessions WHERE name IN ({places})"
        for name, seal, *session in self._ask(query, names):
            self._check(seal, session, f"the state of session {name!r}")
            yield name, Packed(*session)

    # ---- journal ---------------------------------------------------------------------------------------------------

    def note(self, rows: Journal) -> None:
        """Add the rows of one step."""
        ids, features = rows.ids.tobytes(), rows.features.astype(np.float64).tobytes()
        self._do("INSERT INTO journal VALUES (?, ?, ?, ?)", (rows.seq, _seal(rows.seq, ids, features), ids, features))

    def journal(self, input_size: int) -> Iterator[Journal]:
        """All rows recorded since `forget`, in order."""
        last = -1
        while True:
            query = "SELECT seq, seal, ids, features FROM journal WHERE seq > ? ORDER BY seq LIMIT 1"
            found = self._ask(query, (last,))
            if not found:
                return
            (last, seal, ids, features), = found
            self._check(seal, (last, ids, features), f"the journal at row {last}")
            shaped = np.frombuffer(features, dtype=np.float64).reshape(-1, input_size)
            yield Journal(last, np.frombuffer(ids, dtype=np.int64), shaped)

    def forget(self) -> None:
        """Empty the journal: every state is written."""
        self._do("DELETE FROM journal")

    # ---- outbox ----------------------------------------------------------------------------------------------------

    def post(self, start: int, size: int, data: bytes) -> None:
        """Store output until it is delivered: ``size`` units, the first of them number ``start``."""
        row = (start, size, _seal(start, size, data), data)
        self._do("INSERT INTO outbox (start, size, seal, data) VALUES (?, ?, ?, ?)", row)

    def outbox(self) -> List[Tuple[int, int, bytes]]:
        """The stored output, in order."""
        rows = self._ask("SELECT start, size, seal, data FROM outbox ORDER BY id")
        for start, size, seal, data in rows:
            self._check(seal, (start, size, data), f"the output kept from {start} on")
        return [(start, size, data) for start, size, _, data in rows]

    def delivered(self, end: int) -> None:
        """Remove stored output up to unit ``end``."""
        self._do("DELETE FROM outbox WHERE start + size <= ?", (end,))

    def _do(self, query: str, values: Iterable[Any] = (), many: bool = False) -> None:
        try:
            self._db.executemany(query, values) if many else self._db.execute(query, values)
        except _DAMAGE as problem:
            raise self._refuse(problem) from None

    def _ask(self, query: str, values: Iterable[Any] = ()) -> List[Any]:
        """All rows; damage may be detected only while they are fetched."""
        try:
            return self._db.execute(query, values).fetchall()
        except _DAMAGE as problem:
            raise self._refuse(problem) from None

    def _check(self, seal: Any, content: Sequence[Any], what: str) -> None:
        if seal != _seal(*content):
            raise self._refuse(f"{what} is damaged")

    def _refuse(self, problem: Any) -> RunError:
        text = str(problem)
        gone = self._db is not None and not (self.folder / FILE).exists()
        if gone or "is full" in text or "disk I/O error" in text:
            return RunError(self._lost(text))
        if "locked" in text:
            return RunError(f"job.state={str(self.folder)!r} must not be in use by another job; got a locked file; "
                            "end the other job, or use another folder")
        return RunError(f"job.state={str(self.folder)!r} must be an intact state folder that can be written; "
                        f"got: {text}")

    def _lost(self, text: str) -> str:
        """The message for a disk that is full or missing."""
        if not (self.folder / FILE).exists():
            reason, way = f"its {FILE} is no longer there", "put it back, or use another folder"
        else:
            reason, way = _disk_says(self.folder) or text, "free some space on its disk"
        return (f"job.state={str(self.folder)!r} cannot be written: {reason}; {way}, and start the job again: it "
                "continues after the last row that it has answered")


def _disk_says(folder: Path) -> str:
    """Why a file of a few pages cannot be written there; an empty string if it can."""
    probe = folder / f".probe-{os.getpid()}"
    try:
        with open(str(probe), "wb") as file:
            file.write(bytes(1 << 16))
            file.flush()
            os.fsync(file.fileno())
    except OSError as problem:
        return problem.strerror or str(problem)
    finally:
        if probe.exists():
            probe.unlink()
    return ""


def _check_head(path: Path) -> None:
    """Refuse an almost empty file: SQLite would treat it as new, and the states would be lost without a warning."""
    for log in ("-wal", "-shm", "-journal"):
        if os.path.lexists(f"{path}{log}"):
            check_regular(f"{path}{log}")
    if os.path.lexists(str(path)) and check_regular(path).st_size:
        with open_regular(path) as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise OSError("the file is not a database")


def _seal(*content: Any) -> int:
    """CRC-32 of the values of one row as Python writes them, so that types count too."""
    crc = 0
    for part in content:
        crc = zlib.crc32(part if isinstance(part, bytes) else repr(part).encode("utf-8", "surrogatepass"), crc)
    return crc

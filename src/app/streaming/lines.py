"""Numbered lines from a file or from standard input, as many at a time as are available."""

import os
import queue
import threading
from collections import deque
from pathlib import Path
from typing import Callable, Deque, List, NamedTuple, Optional

from app.errors import RunError
from myfla.utils.regular import open_regular

__all__ = ["Line", "Lines", "open_file", "open_stdin"]

CHUNK = 1 << 18
LONGEST = 1 << 20


class Line(NamedTuple):
    """One line of the input.

    Attributes:
        data: its bytes without the line end; None if it is longer than `LONGEST`.
        size: its number of bytes in the input, with the line end.
    """

    data: Optional[bytes]
    size: int


class Lines:
    """Lines from chunks of bytes.

    Args:
        read: ``read(wait)`` returns bytes, ``b""`` at the end of the input, or None if nothing is available (never at
            the end; with ``wait`` only after some time, so that the caller can do other work).
    """

    def __init__(self, read: Callable[[bool], Optional[bytes]]) -> None:
        self._read = read
        self._ready: Deque[Line] = deque()
        self._rest, self._dropped, self.ended = b"", 0, False

    def take(self, most: int, wait: bool) -> List[Line]:
        """Up to ``most`` lines.

        Args:
            most: at least 1.
            wait: wait for the first one, for a while.

        Returns:
            Lines; an empty list if none are available, now or ever (then `ended` is true).
        """
        while len(self._ready) < most and not self.ended:
            chunk = self._read(wait and not self._ready)
            if chunk is None:
                break
            self._split(chunk)
        return [self._ready.popleft() for _ in range(min(most, len(self._ready)))]

    def _split(self, chunk: bytes) -> None:
        if not chunk:
            self.ended = True
            if self._rest or self._dropped:  # a last line without a line end
                self._add(self._rest, len(self._rest))
            self._rest = b""
            return
        first, *others = chunk.split(b"\n")
        self._rest += first
        for part in others:
            self._add(self._rest, len(self._rest) + 1)
            self._rest = part
        if len(self._rest) > LONGEST:
            self._dropped, self._rest = self._dropped + len(self._rest), b""

    def _add(self, data: bytes, size: int) -> None:
        data = data[:-1] if data.endswith(b"\r") else data
        self._ready.append(Line(None if self._dropped or len(data) > LONGEST else data, size + self._dropped))
        self._dropped = 0


def open_file(path: Path, offset: int = 0) -> Lines:
    """The lines of a file from a byte on.

    Raises:
        RunError: it cannot be read.
    """
    try:
        file = open_regular(path)
        file.seek(offset)
        file.read(0)
    except OSError as problem:
        raise RunError(f"job.input must be a readable file; got {str(path)!r}: {problem.strerror}") from None
    return Lines(lambda wait: file.read(CHUNK))


def open_stdin(descriptor: int = 0, patience: float = 0.2) -> Lines:
    """The lines of a descriptor, read by a thread so that the caller need not wait for them.

    Args:
        descriptor: standard input's.
        patience: seconds that one ``read(wait=True)`` waits.
    """
    chunks: "queue.Queue[bytes]" = queue.Queue(64)  # a limit, so that a fast sender must wait

    def pump() -> None:
        while True:
            try:
                chunk = os.read(descriptor, CHUNK)
            except OSError:
                chunk = b""
            chunks.put(chunk)
            if not chunk:
                return

    def read(wait: bool) -> Optional[bytes]:
        try:
            return chunks.get(wait, patience) if wait else chunks.get_nowait()
        except queue.Empty:
            return None

    threading.Thread(target=pump, name="stdin", daemon=True).start()
    return Lines(read)

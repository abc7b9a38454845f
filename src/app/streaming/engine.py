"""Rows to outputs: sessions in memory, one step of the model, the journal, and its replay after a restart."""

import time
from typing import Callable, List, Optional, Sequence, Set, Tuple

import numpy as np
import torch

from app.streaming.model import StreamModel
from app.streaming.pool import SessionPool
from app.streaming.rows import Rows
from app.streaming.sinks import Output, joined
from app.streaming.store import Journal, Store

__all__ = ["Engine"]

BLOCK = 1024  # sessions written at once, so that copies of their states stay small


class Engine:
    """Advances the sessions of a stream.

    Args:
        model: see `StreamModel`.
        store: the state folder.
        memory: bytes for the states in memory.
        emit: ``prediction`` or ``embedding``.
        complain: called with the line of a row that is skipped and the reason.

    Attributes:
        refused: number of rows that were skipped: too large for the model, or with a result that is not finite.
        seq: number of the next row, counted from 1 since the state folder was made.
        evicted, returned: number of sessions that were moved to disk, and that were read back.
        repeated: number of rows of the journal that were computed again.
        model_seconds: time spent in the model.
    """

    def __init__(self, model: StreamModel, store: Store, memory: int, emit: str,
                 complain: Callable[[int, str], None] = lambda line, reason: None) -> None:
        self.model, self.store, self.emit, self.complain = model, store, emit, complain
        self.refused = 0
        each = sum(t.numel() * t.element_size() for t in model.fresh)
        self.pool = SessionPool(model.fresh, max(1, memory // max(each, 1)))
        self.seq = 1
        self.evicted = self.returned = self.repeated = 0
        self.model_seconds = 0.0

    def step(self, rows: Rows) -> List[Output]:
        """Process rows in order and record them in the journal.

        Rows of different sessions share a call of the model; so do several rows of one session, in their order. A row
        that the model cannot take, or whose result is not finite, is skipped and does not change its session.
        """
        good = self.model.takes(rows.features)
        if not good.all():
            for place in np.flatnonzero(~good).tolist():
                worst = rows.features[place][np.nanargmax(np.abs(rows.features[place]))]
                self._refuse(rows.lines[place], f"features must not be too large for the model; got {worst:g}")
            rows = _some(rows, np.flatnonzero(good))
        outputs: List[Output] = []
        for start in range(0, len(rows.sessions), self.pool.capacity):
            stop = min(start + self.pool.capacity, len(rows.sessions))
            outputs += self._step(_some(rows, np.arange(start, stop)))
        return outputs

    def repeat(self) -> None:
        """Bring the states to the position of the last commit."""
        self.seq = int(self.store.get("seq") or 1)
        self.repeated += self._replay()

    def _replay(self, only: Optional[Set[int]] = None) -> int:
        """Compute the rows of the journal that no state contains, of all sessions or of some; returns their number."""
        count = 0
        for entry in self.store.journal(self.model.input_size):
            chosen = np.arange(len(entry.ids)) if only is None else np.flatnonzero(np.isin(entry.ids, list(only)))
            numbers = sorted(set(entry.ids[chosen].tolist()))
            known = dict(zip(numbers, self.store.names(numbers)))
            for start in range(0, len(chosen), self.pool.capacity):
                part = chosen[start : start + self.pool.capacity]
                sessions = [known[number] for number in entry.ids[part].tolist()]
                count += self._repeat(sessions, entry.seq + part.astype(np.int64), entry.features[part])
        return count

    def snapshot(self) -> None:
        """Write every state that has changed and empty the journal. The caller commits."""
        self._write(np.flatnonzero(self.pool.dirty))
        self.store.forget()

    def _step(self, rows: Rows) -> List[Output]:
        index, slots = self._bring(rows.sessions)
        seqs = np.arange(self.seq, self.seq + len(index), dtype=np.int64)
        made = self._answer(rows, *self._advance(index, slots, seqs, rows.features))
        good = made.finite()
        if not good.all():
            return self._parted(rows, good)
        self.store.note(Journal(self.seq, self.pool.ids[slots[index]], rows.features))
        self.seq += len(index)
        return [made]

    def _parted(self, rows: Rows, good: np.ndarray) -> List[Output]:
        """Undo a step with results that are not finite and repeat it, with the affected sessions row by row."""
        self._undo(rows.sessions)
        if len(good) == 1:
            self._refuse(rows.lines[0], "the result must be finite; got nan or infinity; the session is unchanged")
            return []
        bad = {rows.sessions[place] for place in np.flatnonzero(~good).tolist()}
        apart = np.array([name in bad for name in rows.sessions])
        parts = [np.flatnonzero(~apart)] + [np.array([place]) for place in np.flatnonzero(apart).tolist()]
        outputs = [made for part in parts if len(part) for made in self._step(_some(rows, part))]
        return [joined(outputs)] if outputs else []

    def _undo(self, sessions: Sequence[str]) -> None:
        """Bring sessions back to the end of the journal, from their stored states and the rows recorded since."""
        names = list(dict.fromkeys(sessions))
        slots = self.pool.find(names)
        ids = set(self.pool.ids[slots].tolist())
        self.pool.dirty[slots] = False
        self.pool.drop(slots)
        self._replay(ids)

    def _refuse(self, line: int, reason: str) -> None:
        self.refused += 1
        self.complain(int(line), reason)

    def _answer(self, rows: Rows, hidden: torch.Tensor, embedding: torch.Tensor, steps: np.ndarray) -> Output:
        if self.emit == "embedding":
            return Output(rows.lines, rows.sessions, steps, embedding=embedding.float().cpu().numpy())
        start = time.perf_counter()
        said, names = self.model.predict(hidden, embedding), self.model.names
        if said.values is not None:
            made = Output(rows.lines, rows.sessions, steps, values=said.values.cpu().numpy(), names=names)
        else:
            predicted, probabilities = said.of_classes()
            classes = [names[i] for i in predicted.tolist()]
            shares = probabilities.cpu().numpy()
            made = Output(rows.lines, rows.sessions, steps, classes=classes, probability=shares.max(-1),
                          probabilities=shares, names=names)
        self.model_seconds += time.perf_counter() - start
        return made

    def _repeat(self, sessions: List[str], seqs: np.ndarray, features: np.ndarray) -> int:
        index, slots = self._bring(sessions)
        new = seqs > self.pool.seqs[slots[index]]  # a state that was written later contains these rows
        if not new.any():
            return 0
        kept, index = np.unique(index[new], return_inverse=True)
        self._advance(index, slots[kept], seqs[new], features[new])
        return int(new.sum())

    def _advance(self, index: np.ndarray, slots: np.ndarray, seqs: np.ndarray,
                 features: np.ndarray) -> Tuple[torch.Tensor, torch.Tensor, np.ndarray]:
        """One call of the model.

        Args:
            index: ``[n]``, the place of each row's session in ``slots``; every place occurs.
            slots: ``[N]``, slots of the sessions.
            seqs: ``[n]``, numbers of the rows.
            features: ``[n, input_size]``.

        Returns:
            ``(hidden, embedding [n, hidden_size], step of each row within its session [n])``.
        """
        counts = np.bincount(index, minlength=len(slots))
        order = np.argsort(index, kind="stable")  # session after session, each in its order
        seen = self.pool.steps[slots]
        ends = np.cumsum(counts)
        place = np.empty_like(order)
        place[order] = np.arange(len(order)) - np.repeat(ends - counts, counts)
        states = self.pool.gather(slots)
        device = self.model.weight.device
        start = time.perf_counter()
        x, sizes, before = (torch.from_numpy(given).to(device) for given in (features[order], counts, seen))
        hidden, embedding, states = self.model.advance(x, sizes, before, states)
        self.model_seconds += time.perf_counter() - start
        self.pool.scatter(slots, states, counts, seqs[order][ends - 1])
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        rows = torch.from_numpy(back).to(device)
        return hidden[rows], embedding[rows], seen[index] + place + 1

    def _bring(self, sessions: Sequence[str]) -> Tuple[np.ndarray, np.ndarray]:
        """``(index of each row's session among the different ones, their slots)``; afterwards all are in memory."""
        places: dict = {}
        index = np.array([places.setdefault(name, len(places)) for name in sessions], dtype=np.int64)
        names = list(places)
        slots = self.pool.find(names)
        lost = np.flatnonzero(slots < 0)
        if len(lost):
            full = len(self.pool) + len(lost) - self.pool.capacity
            if full > 0:
                self._evict(full)
            wanted = [names[i] for i in lost]
            found = self.store.fetch(wanted)
            self.returned += sum(1 for session in found if session.state)
            ids, steps, seqs, states = zip(*found)
            slots[lost] = self.pool.add(wanted, ids, steps, seqs, states)
        return index, slots

    def _evict(self, count: int) -> None:
        """Make room for a few more sessions than needed, so that not every step has to do it."""
        slots = self.pool.idle(max(count, self.pool.capacity // 16))
        self._write(slots[self.pool.dirty[slots]])
        self.pool.drop(slots)
        self.evicted += len(slots)

    def _write(self, slots: np.ndarray) -> None:
        for start in range(0, len(slots), BLOCK):
            self.store.keep(self.pool.pack(slots[start : start + BLOCK]))
        self.pool.dirty[slots] = False


def _some(rows: Rows, places: np.ndarray) -> Rows:
    return Rows(rows.lines[places], [rows.sessions[place] for place in places.tolist()], rows.features[places])

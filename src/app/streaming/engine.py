"""Rows to outputs: who is in memory, one step of the model, the journal, and what a restart repeats."""

import time
from typing import List, Sequence, Tuple

import numpy as np
import torch

from app.streaming.model import StreamModel
from app.streaming.pool import SessionPool
from app.streaming.rows import Rows
from app.streaming.sinks import Output
from app.streaming.store import Journal, Store

__all__ = ["Engine"]

BLOCK = 1024  # sessions written at once, so that copies of their states stay small


class Engine:
    """Sessions in motion.

    Args:
        model: see `StreamModel`.
        store: the state folder.
        memory: bytes for the states in memory.
        emit: ``prediction`` or ``embedding``.

    Attributes:
        seq: number of the next row, counted from 1 since the state folder began.
        evicted, returned: sessions that went to disk, and that came back.
        repeated: rows of the journal that were taken in again.
        model_seconds: time spent in the model.
    """

    def __init__(self, model: StreamModel, store: Store, memory: int, emit: str) -> None:
        self.model, self.store, self.emit = model, store, emit
        each = sum(t.numel() * t.element_size() for t in model.fresh)
        self.pool = SessionPool(model.fresh, max(1, memory // max(each, 1)))
        self.seq = 1
        self.evicted = self.returned = self.repeated = 0
        self.model_seconds = 0.0

    def step(self, rows: Rows) -> List[Output]:
        """Take rows in, in order, and note them in the journal.

        Rows of different sessions share a call of the model; so do several rows of one session, in their order.
        """
        outputs = []
        for start in range(0, len(rows.sessions), self.pool.capacity):
            part = slice(start, start + self.pool.capacity)
            outputs.append(self._step(Rows(rows.lines[part], rows.sessions[part], rows.features[part])))
        return outputs

    def repeat(self) -> None:
        """Bring the states to where the last commit left the outputs."""
        self.seq = int(self.store.get("seq") or 1)
        for entry in self.store.journal(self.model.input_size):
            numbers = sorted(set(entry.ids.tolist()))
            known = dict(zip(numbers, self.store.names(numbers)))
            for start in range(0, len(entry.ids), self.pool.capacity):
                part = slice(start, start + self.pool.capacity)
                sessions = [known[number] for number in entry.ids[part].tolist()]
                seqs = np.arange(entry.seq, entry.seq + len(entry.ids), dtype=np.int64)[part]
                self._repeat(sessions, seqs, entry.features[part])

    def snapshot(self) -> None:
        """Write every state that changed; the journal begins anew. To be committed by the caller."""
        self._write(np.flatnonzero(self.pool.dirty))
        self.store.forget()

    def _step(self, rows: Rows) -> Output:
        index, slots = self._bring(rows.sessions)
        seqs = np.arange(self.seq, self.seq + len(index), dtype=np.int64)
        self.store.note(Journal(self.seq, self.pool.ids[slots[index]], rows.features))
        self.seq += len(index)
        hidden, embedding, steps = self._advance(index, slots, seqs, rows.features)
        if self.emit == "embedding":
            return Output(rows.lines, rows.sessions, steps, embedding=embedding.float().cpu().numpy())
        start = time.perf_counter()
        said, names = self.model.predict(hidden, embedding), self.model.names
        if said.values is not None:
            made = Output(rows.lines, rows.sessions, steps, values=said.values.cpu().numpy(), names=names)
        else:
            classes = [names[i] for i in said.predicted.tolist()]
            share = said.probabilities.gather(-1, said.predicted[:, None])[:, 0].cpu().numpy()
            made = Output(rows.lines, rows.sessions, steps, classes=classes, probability=share)
        self.model_seconds += time.perf_counter() - start
        return made

    def _repeat(self, sessions: List[str], seqs: np.ndarray, features: np.ndarray) -> None:
        index, slots = self._bring(sessions)
        new = seqs > self.pool.seqs[slots[index]]  # a state that was written since holds its rows already
        if not new.any():
            return
        kept, index = np.unique(index[new], return_inverse=True)
        self._advance(index, slots[kept], seqs[new], features[new])
        self.repeated += int(new.sum())

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
        given = (torch.from_numpy(features[order]), torch.from_numpy(counts), torch.from_numpy(seen))
        hidden, embedding, states = self.model.advance(*(t.to(device) for t in given), states)
        self.model_seconds += time.perf_counter() - start
        self.pool.scatter(slots, states, counts, seqs[order][ends - 1])
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        rows = torch.from_numpy(back).to(device)
        return hidden[rows], embedding[rows], seen[index] + place + 1

    def _bring(self, sessions: Sequence[str]) -> Tuple[np.ndarray, np.ndarray]:
        """``(place of each row's session among the different ones, their slots)``; all are in memory then."""
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
        """Make room: a little more than needed, so that it need not be made for each step."""
        slots = self.pool.idle(max(count, self.pool.capacity // 16))
        self._write(slots[self.pool.dirty[slots]])
        self.pool.drop(slots)
        self.evicted += len(slots)

    def _write(self, slots: np.ndarray) -> None:
        for start in range(0, len(slots), BLOCK):
            self.store.keep(self.pool.pack(slots[start : start + BLOCK]))
        self.pool.dirty[slots] = False

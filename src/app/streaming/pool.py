"""The states of the sessions in memory: a batch with one row for each, which grows when needed."""

from typing import Dict, List, NamedTuple, Sequence

import numpy as np
import torch

__all__ = ["Packed", "SessionPool"]


class Packed(NamedTuple):
    """One session as it is written to disk.

    Attributes:
        id: its number in the store.
        steps: number of rows it has sent.
        seq: number, over all sessions, of the last row in its state.
        state: the bytes of its tensors, one after another.
    """

    id: int
    steps: int
    seq: int
    state: bytes


class SessionPool:
    """States of up to ``capacity`` sessions, as tensors ``[rows, ...]`` that only the pool changes.

    Args:
        fresh: one row of each tensor: the state of a session that has sent nothing.
        capacity: most sessions in memory.

    Attributes:
        ids, steps, seqs: int64 arrays, by slot: see `Packed`.
        dirty: bool array, by slot: changed since it was last written to disk.
    """

    def __init__(self, fresh: Sequence[torch.Tensor], capacity: int) -> None:
        self.fresh, self.capacity = list(fresh), capacity
        self.bytes_each = sum(t.numel() * t.element_size() for t in self.fresh)
        self._states = [t.new_empty(0, *t.shape[1:]) for t in self.fresh]
        self._slots: Dict[str, int] = {}
        self._names: List[str] = []
        self.ids, self.steps, self.seqs, self._used = (np.zeros(0, dtype=np.int64) for _ in range(4))
        self.dirty = np.zeros(0, dtype=bool)
        self._clock = 0

    def __len__(self) -> int:
        return len(self._slots)

    def find(self, names: Sequence[str]) -> np.ndarray:
        """``[len(names)]`` slots, -1 for sessions that are not in memory; those found count as used now."""
        get = self._slots.get
        slots = np.fromiter((get(name, -1) for name in names), dtype=np.int64, count=len(names))
        self._clock += 1
        self._used[slots[slots >= 0]] = self._clock
        return slots

    def idle(self, count: int) -> np.ndarray:
        """The slots of the ``count`` sessions that were used longest ago; never one that was used last."""
        slots = np.fromiter(self._slots.values(), dtype=np.int64, count=len(self._slots))
        slots = slots[self._used[slots] < self._clock]
        if count < len(slots):
            slots = slots[np.argpartition(self._used[slots], count)[:count]]
        return slots

    def drop(self, slots: np.ndarray) -> None:
        """Remove sessions, whose states must have been written before."""
        for slot in slots.tolist():
            del self._slots[self._names[slot]]
            self._names[slot] = ""

    def add(self, names: Sequence[str], ids: Sequence[int], steps: Sequence[int], seqs: Sequence[int],
            states: Sequence[bytes]) -> np.ndarray:
        """Give sessions a slot; the state ``b""`` is that of a session that has sent nothing."""
        slots = self._take(len(names))
        for name, slot in zip(names, slots.tolist()):
            self._slots[name], self._names[slot] = slot, name
        self.ids[slots], self.steps[slots], self.seqs[slots] = ids, steps, seqs
        self.dirty[slots], self._used[slots] = False, self._clock
        new = np.fromiter((not state for state in states), dtype=bool, count=len(slots))
        self._put(slots[new], [t.expand(int(new.sum()), *t.shape[1:]) for t in self.fresh])
        if not new.all():
            self._put(slots[~new], self._unpack([state for state in states if state]))
        return slots

    def gather(self, slots: np.ndarray) -> List[torch.Tensor]:
        """The rows ``slots``, until the next call of the pool.

        They are the pool's tensors or copies; after changing them, pass them to `scatter`.
        """
        first, count = (int(slots[0]), len(slots)) if len(slots) else (0, 0)
        if np.array_equal(slots, np.arange(first, first + count)):
            return [t.narrow(0, first, count) for t in self._states]  # sessions in one block need no copy
        return [t.index_select(0, torch.as_tensor(slots, device=t.device)) for t in self._states]

    def scatter(self, slots: np.ndarray, states: Sequence[torch.Tensor], rows: np.ndarray, seqs: np.ndarray) -> None:
        """Store new states of ``slots``, which contain ``rows`` further rows of input, the last of them number
        ``seqs``."""
        self._put(slots, states)
        self.steps[slots] += rows
        self.seqs[slots] = seqs
        self.dirty[slots] = True

    def pack(self, slots: np.ndarray) -> List[Packed]:
        """Sessions as they are written to disk."""
        states = self.gather(slots)
        flat = [t.cpu().contiguous().view(len(slots), -1).view(torch.uint8) for t in states if t.numel()]
        data = torch.cat(flat, dim=1).numpy() if flat else np.zeros((len(slots), 0), dtype=np.uint8)
        columns = (self.ids[slots].tolist(), self.steps[slots].tolist(), self.seqs[slots].tolist())
        return [Packed(id, steps, seq, bytes(state)) for id, steps, seq, state in zip(*columns, data)]

    def _unpack(self, states: Sequence[bytes]) -> List[torch.Tensor]:
        data = torch.from_numpy(np.frombuffer(b"".join(states), dtype=np.uint8).reshape(len(states), -1).copy())
        parts, start = [], 0
        for model in self.fresh:
            size = model.numel() * model.element_size()
            part = data[:, start : start + size].contiguous().view(model.dtype)
            parts.append(part.view(len(states), *model.shape[1:]).to(model.device))
            start += size
        return parts

    def _put(self, slots: np.ndarray, states: Sequence[torch.Tensor]) -> None:
        if len(slots):
            for own, new in zip(self._states, states):
                if not _within(new, own):  # otherwise it was written in place
                    own.index_copy_(0, torch.as_tensor(slots, device=own.device), new.to(own.dtype))

    def _take(self, count: int) -> np.ndarray:
        used = np.zeros(len(self._names), dtype=bool)
        used[list(self._slots.values())] = True
        free = np.flatnonzero(~used)
        if len(free) < count:
            self._grow(len(self._slots) + count)
            free = np.concatenate([free, np.arange(len(used), len(self._names))])
        return free[:count]

    def _grow(self, needed: int) -> None:
        old = len(self._names)
        size = max(needed, min(max(2 * old, 64), self.capacity))
        more = size - old
        for i, states in enumerate(self._states):
            self._states[i] = states.new_empty(size, *states.shape[1:])
            self._states[i][:old] = states
        self._names += [""] * more
        arrays = (self.ids, self.steps, self.seqs, self._used)
        self.ids, self.steps, self.seqs, self._used = (np.concatenate([a, np.zeros(more, np.int64)]) for a in arrays)
        self.dirty = np.concatenate([self.dirty, np.zeros(more, bool)])


def _within(part: torch.Tensor, whole: torch.Tensor) -> bool:
    start, size = whole.data_ptr(), whole.numel() * whole.element_size()
    return start <= part.data_ptr() < start + size and part.device == whole.device

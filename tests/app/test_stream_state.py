"""The states of sessions in memory and on disk."""

import sqlite3

import numpy as np
import pytest
import torch

from app.errors import RunError
from app.streaming.pool import Packed, SessionPool
from app.streaming.store import FILE, Journal, Position, Store
from myfla.testing import cases

FRESH = [torch.zeros(1, 2, 3), torch.full((1, 2), float("-inf"), dtype=torch.float64),
         torch.zeros(1, 2, dtype=torch.bfloat16), torch.zeros(1, 0)]


def random_states(count, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(count, *t.shape[1:], generator=draw).to(t.dtype) for t in FRESH]


def same(a, b):
    return all(x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(a, b))


def test_a_new_session_has_the_fresh_state():
    pool = SessionPool(FRESH, 8)
    slots = pool.add(["a", "b"], [1, 2], [0, 0], [0, 0], [b"", b""])
    assert same(pool.gather(slots), [torch.cat([t, t]) for t in FRESH]) and not pool.dirty.any()
    assert pool.bytes_each == 24 + 16 + 4 and len(pool) == 2
    assert pool.find(["b", "c", "a"]).tolist() == [slots[1], -1, slots[0]]


def test_packed_states_come_back_bit_for_bit():
    pool, states = SessionPool(FRESH, 8), random_states(3)
    slots = pool.add(["a", "b", "c"], [4, 5, 6], [0, 0, 0], [0, 0, 0], [b""] * 3)
    pool.scatter(slots, states, np.array([1, 2, 3]), np.array([10, 11, 12]))
    packed = pool.pack(slots[[2, 0]])
    assert [p[:3] for p in packed] == [(6, 3, 12), (4, 1, 10)] and len(packed[0].state) == pool.bytes_each
    other = SessionPool(FRESH, 8)
    again = other.add(["c", "new", "a"], [6, 9, 4], [3, 0, 1], [12, 0, 10], [packed[0].state, b"", packed[1].state])
    assert same(other.gather(again[[0, 2]]), [t[[2, 0]] for t in states])
    assert same(other.gather(again[[1]]), FRESH)
    assert other.steps[again].tolist() == [3, 0, 1] and other.seqs[again].tolist() == [12, 0, 10]


def test_the_longest_idle_go_first_and_never_those_at_hand():
    pool = SessionPool(FRESH, 4)
    slots = dict(zip("abcd", pool.add(list("abcd"), range(4), [0] * 4, [0] * 4, [b""] * 4).tolist()))
    for name in "bacd":
        pool.find([name])
    assert set(pool.idle(2).tolist()) == {slots["b"], slots["a"]}
    pool.find(["b", "a"])
    assert set(pool.idle(4).tolist()) == {slots["c"], slots["d"]}
    pool.drop(pool.idle(2))
    assert len(pool) == 2 and pool.find(["c", "d", "b"]).tolist() == [-1, -1, slots["b"]]
    assert set(pool.add(["e", "f"], [7, 8], [0, 0], [0, 0], [b"", b""]).tolist()) == {slots["c"], slots["d"]}


def test_a_pool_grows_to_its_capacity_and_keeps_what_it_holds():
    pool, states = SessionPool(FRESH, 100), random_states(30)
    slots = pool.add([str(i) for i in range(30)], range(30), [0] * 30, [0] * 30, [b""] * 30)
    pool.scatter(slots, states, np.ones(30, np.int64), np.arange(30))
    for start in range(30, 100, 35):
        names = [str(i) for i in range(start, start + 35)]
        pool.add(names, range(start, start + 35), [0] * 35, [0] * 35, [b""] * 35)
    assert len(pool) == 100 == len(pool.ids) and same(pool.gather(slots), states)


def test_gathered_rows_are_right_in_a_block_and_scattered():
    pool, states = SessionPool(FRESH, 10), random_states(6)
    slots = pool.add([str(i) for i in range(6)], range(6), [0] * 6, [0] * 6, [b""] * 6)
    pool.scatter(slots, states, np.ones(6, np.int64), np.arange(6))
    for rows in ([1, 2, 3], [3, 2], [5, 0, 4], [2], []):
        assert same(pool.gather(slots[rows]), [t[rows] for t in states])


FACTS = {"model": "m", "emit": "prediction"}


def test_what_is_not_committed_is_gone(tmp_path):
    store = Store(tmp_path, FACTS)
    (a, b) = store.fetch(["a", "b"])
    store.keep([Packed(a.id, 3, 7, b"state")])
    store.put("seq", 8)
    store.move("-", Position(5, 100, 4, 9))
    store.commit()
    store.keep([Packed(b.id, 1, 9, b"other")])
    store.fetch(["c"])
    store.put("seq", 10)
    store._db.close()
    store = Store(tmp_path, FACTS)
    assert store.get("seq") == 8 and store.get("nothing") is None
    assert store.position("-") == Position(5, 100, 4, 9) and store.position("x") == Position()
    assert store.fetch(["b", "c", "a"]) == [Packed(b.id, 0, 0, b""), Packed(b.id + 1, 0, 0, b""),
                                            Packed(a.id, 3, 7, b"state")]
    assert store.names([b.id, a.id]) == ["b", "a"]
    store.close()


def test_many_sessions_are_fetched_at_once(tmp_path):
    store, names = Store(tmp_path, FACTS), [f"n{i}" for i in range(2345)]
    first = store.fetch(names)
    assert [s.id for s in first] == list(range(1, 2346))
    assert store.fetch(names[::-1]) == first[::-1] and store.fetch(["new", "n0"])[0].id == 2346
    store.close()


def test_the_journal_keeps_its_order(tmp_path):
    store = Store(tmp_path, FACTS)
    noted = [Journal(seq, np.arange(n), np.random.rand(n, 3).astype(np.float32)) for seq, n in ((1, 4), (5, 1), (6, 2))]
    for entry in noted:
        store.note(entry)
    for got, want in zip(store.journal(3), noted):
        assert got.seq == want.seq and np.array_equal(got.ids, want.ids) and np.array_equal(got.features, want.features)
    store.forget()
    assert not list(store.journal(3))
    store.close()


def test_the_outbox_loses_only_what_was_delivered(tmp_path):
    store = Store(tmp_path, FACTS)
    for start, data in ((0, b"abc"), (3, b"de"), (5, b"f")):
        store.post(start, len(data), data)
    store.delivered(4)
    assert store.outbox() == [(3, 2, b"de"), (5, 1, b"f")]
    store.delivered(6)
    assert store.outbox() == []
    store.close()


def test_another_model_or_version_is_refused_by_name(tmp_path):
    Store(tmp_path, FACTS).close()
    with pytest.raises(RunError, match=r"job.state=.* must belong to this run; its model is 'm', not 'other'; use"):
        Store(tmp_path, {**FACTS, "model": "other"})
    with pytest.raises(RunError, match="its emit is 'prediction', not 'embedding'"):
        Store(tmp_path, {**FACTS, "emit": "embedding"})
    Store(tmp_path, FACTS).close()


def test_a_folder_in_use_is_refused(tmp_path):
    store = Store(tmp_path, FACTS)
    with pytest.raises(RunError, match=r"job.state=.* must not be in use by another job"):
        Store(tmp_path, FACTS)
    store.close()
    Store(tmp_path, FACTS).close()


@cases(damage=["state", "journal", "truncated", "foreign", "meta"])
def test_damage_is_noticed(tmp_path, damage):
    store = Store(tmp_path, FACTS)
    (a,) = store.fetch(["a"])
    store.keep([Packed(a.id, 3, 7, b"state" * 5000)])
    store.note(Journal(1, np.arange(9), np.ones((9, 3), np.float32)))
    store.commit()
    store.close()
    path = tmp_path / FILE
    data = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "foreign":
        path.write_bytes(b"something else" * 1000)
    else:
        edit = {"state": "UPDATE sessions SET steps = 4", "journal": "UPDATE journal SET ids = zeroblob(72)",
                "meta": "UPDATE meta SET value = '{'"}[damage]
        with sqlite3.connect(str(path)) as db:
            db.execute(edit)
        db.close()
    with pytest.raises(RunError, match=r"job.state=.* must be an intact state folder that can be written; got: "):
        store = Store(tmp_path, FACTS)
        store.fetch(["a"])
        list(store.journal(3))


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"job.state=.*file/state' must be an intact state folder that can be written"):
        Store(tmp_path / "file" / "state", FACTS)

"""Random histories of several sessions, compared after every step with plain lists of ids."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from store_harness import HARNESSES, make_gists, make_record

SIZE, LEVELS = 4, 4
STEPS = ("create", "append", "append", "commit", "rewind", "retry", "reopen", "restart", "fork", "delete")


@dataclass
class Expected:
    """One session as it should be: ids committed, ids staged since (all of them), fence of the live lease or 0."""

    committed: np.ndarray
    written: np.ndarray
    fence: int = 0


class World:
    """A store, and what it should hold."""

    def __init__(self, harness):
        self.harness, self.store = harness, harness.open()
        self.sessions: dict[str, Expected] = {}
        self.made = 0

    def step(self, kind, seed):
        rng = np.random.default_rng(seed)
        names = sorted(self.sessions)
        if kind in ("create", "restart"):
            getattr(self, kind)()
        elif names:
            name = names[rng.integers(len(names))]
            getattr(self, kind)(name, self.sessions[name], rng)
        self.check()

    def new_name(self):
        self.made += 1
        return f"s{self.made}"

    def create(self):
        name = self.new_name()
        self.store.create(make_record(name, block_size=SIZE))
        self.sessions[name] = Expected(np.zeros(0, np.int32), np.zeros(0, np.int32))

    def restart(self):
        self.store.close()
        self.store = self.harness.open()
        for session in self.sessions.values():
            session.fence, session.written = 0, session.committed

    def reopen(self, name, session, rng):
        session.fence = self.store.open(name, "alice", "me").result().fence
        session.written = session.committed

    def append(self, name, session, rng):
        if not session.fence:
            self.reopen(name, session, rng)
        old = len(session.written)
        session.written = np.concatenate([session.written, rng.integers(0, 1000, rng.integers(1, 90), dtype=np.int32)])
        self.write(name, session, old // SIZE)

    def retry(self, name, session, rng):
        """Writes some rows a second time, as after a lost answer."""
        if session.fence and len(session.written) >= SIZE:
            self.write(name, session, int(rng.integers(len(session.written) // SIZE)))

    def write(self, name, session, first):
        ids, blocks = session.written, len(session.written) // SIZE
        self.store.write_spans(name, session.fence, first, ids[first * SIZE : blocks * SIZE].reshape(-1, SIZE))
        for level in range(1, LEVELS + 1):
            node = first // SIZE ** (level - 1)
            self.store.write_gists(name, session.fence, level, node, make_gists(ids, SIZE, level, node))

    def commit(self, name, session, rng):
        if session.fence:
            self.store.commit(self.record(name, session.written, fence=session.fence)).result()
            session.committed = session.written

    def rewind(self, name, session, rng):
        if session.fence:
            session.written = session.committed[: rng.integers(len(session.committed) + 1)]
            self.commit(name, session, rng)

    def fork(self, name, session, rng):
        child, ids = self.new_name(), session.committed[: rng.integers(len(session.committed) + 1)]
        self.store.fork(name, "alice", self.record(child, ids))
        self.sessions[child] = Expected(ids, ids)

    def delete(self, name, session, rng):
        self.store.delete(name, "alice").result()
        del self.sessions[name]

    def record(self, name, ids, **fields):
        state = {"sum": int(ids.sum())}
        tail = ids[len(ids) // SIZE * SIZE :]
        return replace(make_record(name, block_size=SIZE), tokens=len(ids), tail=tail, state=state, **fields)

    def check(self):
        for name, session in self.sessions.items():
            self.check_rows(name, session.written)
            record = self.store.record(name, "alice").result()
            assert record.tokens == len(session.committed)
            assert record.state.get("sum", 0) == session.committed.sum()
            assert np.array_equal(record.tail, session.committed[len(session.committed) // SIZE * SIZE :])
        assert {info.session_id for info in self.store.list("alice", 1000).result().sessions} == set(self.sessions)

    def check_rows(self, name, ids):
        blocks = len(ids) // SIZE
        whole = self.store.read_span_range(name, 0, blocks + 3).result()
        assert np.array_equal(whole.ids.ravel(), ids[: blocks * SIZE])
        assert whole.missing.tolist() == [blocks, blocks + 1, blocks + 2]
        some = self.store.read_spans(name, np.arange(blocks + 3)[::-2]).result()
        assert np.array_equal(some.ids, whole.ids[some.blocks])
        assert len(some.blocks) + len(some.missing) == (blocks + 4) // 2
        for level in range(1, LEVELS + 1):
            expected = make_gists(ids, SIZE, level, 0)
            batch = self.store.read_gist_range(name, level, 0, len(expected) + 1).result()
            assert np.array_equal(batch.gists, expected)
            assert batch.missing.tolist() == [len(expected)]


@pytest.mark.parametrize("kind", sorted(HARNESSES))
@settings(max_examples=60, deadline=None)
@given(steps=st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 1 << 16)), min_size=5, max_size=40))
def test_random_histories_match_plain_lists(kind, steps):
    """Law: after any sequence of calls and restarts a store holds exactly what was written, and committed, no more."""
    harness = HARNESSES[kind]()
    world = World(harness)
    try:
        world.step("create", 0)
        for step in steps:
            world.step(*step)
        for name in sorted(world.sessions):
            world.store.delete(name, "alice").result()
        assert harness.count_everything() == 0
    finally:
        world.store.close()
        harness.cleanup()

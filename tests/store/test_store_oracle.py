"""Random histories of several sessions, compared after every step with plain lists of ids."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mc_core.errors import StoreError
from store_harness import HARNESSES, make_gists, make_record

SIZE, LEVELS = 4, 4
STEPS = (
    *("create", "append", "append", "commit", "rewind", "retry", "reopen", "restart"),
    *("fork", "fork", "reshape", "reshape", "write_gists", "write_some_gists", "commit_without_gists", "delete"),
)


@dataclass
class Expected:
    """One session as it should be: ids committed, ids staged since (all of them), fence of the live lease or 0.

    ``dim``: width of its gists. ``made``, ``staged_made``: blocks, from the first on, that have them for good, and by
    what is staged.
    """

    committed: np.ndarray
    written: np.ndarray
    fence: int = 0
    dim: int = 2
    made: int = 0
    staged_made: int = 0

    @property
    def blocks(self):
        return len(self.committed) // SIZE

    @property
    def staged_blocks(self):
        return len(self.written) // SIZE

    def wrote_gists(self, blocks):
        """Of the first ``blocks`` blocks: those of committed ones stay."""
        self.staged_made = blocks
        self.made = max(self.made, min(blocks, self.blocks))

    def committed_all(self):
        self.committed = self.written
        self.made = self.staged_made = min(self.staged_made, self.blocks)

    def back(self):
        """To what is committed."""
        self.written, self.staged_made = self.committed, self.made


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
            session.fence = 0
            session.back()

    def reopen(self, name, session, rng):
        session.fence = self.store.open(name, "alice", "me").result().fence
        session.back()

    def append(self, name, session, rng):
        if not session.fence:
            self.reopen(name, session, rng)
        old = len(session.written)
        session.written = np.concatenate([session.written, rng.integers(0, 1000, rng.integers(1, 90), dtype=np.int32)])
        self.write(name, session, old // SIZE)

    def retry(self, name, session, rng):
        """Writes some rows a second time, as after a lost answer."""
        if session.fence and session.staged_blocks:
            self.write(name, session, int(rng.integers(session.staged_blocks)))

    def write(self, name, session, first):
        ids, blocks = session.written, session.staged_blocks
        self.store.write_spans(name, session.fence, first, ids[first * SIZE : blocks * SIZE].reshape(-1, SIZE))
        self.gists(name, session, min(first, session.staged_made), blocks)

    def gists(self, name, session, first, end):
        """Writes those of blocks [first, end), and of all that these complete."""
        for level in range(1, LEVELS + 1):
            node, ids = first // SIZE ** (level - 1), session.written[: end * SIZE]
            self.store.write_gists(name, session.fence, level, node, make_gists(ids, SIZE, level, node, session.dim))
        session.wrote_gists(end)

    def commit(self, name, session, rng):
        if session.fence:
            commit = self.store.commit(self.record(name, session.written, session.dim, fence=session.fence))
            if session.staged_made >= session.staged_blocks:
                commit.result()
                session.committed_all()
            else:
                with pytest.raises(StoreError, match="rows of level"):
                    commit.result()

    def commit_without_gists(self, name, session, rng):
        """Of which only some need be there."""
        if session.fence:
            needed = int(rng.integers(session.staged_made + 1))
            record = self.record(name, session.written, session.dim, fence=session.fence, gist_blocks=needed)
            self.store.commit(record).result()
            session.committed_all()

    def rewind(self, name, session, rng):
        if session.fence:
            kept, session.written = session.written, session.committed[: rng.integers(len(session.committed) + 1)]
            (self.commit if rng.random() < 0.5 else self.commit_without_gists)(name, session, rng)
            if session.committed is not session.written:
                session.written = kept

    def reshape(self, name, session, rng):
        """Drops the gists, for others of any width, and makes them anew or not."""
        if session.fence:
            session.dim = int(rng.integers(1, 5))
            shape = {"gist_dim": session.dim, "gist_dtype": "float32", "gist_keys": 0, "key_dim": 0}
            self.store.reshape(name, session.fence, **shape).result()
            session.made = session.staged_made = 0

    def write_gists(self, name, session, rng):
        if session.fence:
            self.write(name, session, session.staged_blocks)

    def write_some_gists(self, name, session, rng):
        """As a server that makes them bit by bit."""
        if session.fence and session.staged_made < session.staged_blocks:
            end = int(rng.integers(session.staged_made, session.staged_blocks + 1))
            self.gists(name, session, session.staged_made, end)

    def fork(self, name, session, rng):
        child, ids = self.new_name(), session.committed[: rng.integers(len(session.committed) + 1)]
        self.store.fork(name, "alice", self.record(child, ids, session.dim)).result()
        made = min(session.made, len(ids) // SIZE)
        self.sessions[child] = Expected(ids, ids, 0, session.dim, made, made)

    def delete(self, name, session, rng):
        self.store.delete(name, "alice").result()
        del self.sessions[name]

    def record(self, name, ids, dim, **fields):
        state = {"sum": int(ids.sum())}
        tail = ids[len(ids) // SIZE * SIZE :]
        return replace(
            make_record(name, block_size=SIZE, gist_dim=dim), tokens=len(ids), tail=tail, state=state, **fields
        )

    def check(self):
        """Compares all sessions; all of their rows are asked for at once, before the first answer."""
        asked = [(session, self.ask(name, session)) for name, session in self.sessions.items()]
        for session, futures in asked:
            record, whole, some, *levels = (future.result() for future in futures)
            self.check_record(session, record)
            self.check_spans(session.written, whole, some)
            for level, batch in enumerate(levels, 1):
                ids = session.written[: session.staged_made * SIZE]
                expected = make_gists(ids, SIZE, level, 0, session.dim)
                assert np.array_equal(batch.gists, expected)
                assert batch.missing.tolist() == list(range(len(expected), len(session.written) // SIZE + 1))
        assert {info.session_id for info in self.store.list("alice", 1000).result().sessions} == set(self.sessions)

    def ask(self, name, session):
        """Futures: the record, spans in two ways, gists of each level; of rows, always one more than there are."""
        store, rows = self.store, len(session.written) // SIZE + 1
        spans = store.read_span_range(name, 0, rows), store.read_spans(name, np.arange(rows)[::-2])
        gists = [store.read_gist_range(name, level, 0, rows) for level in range(1, LEVELS + 1)]
        return [store.record(name, "alice"), *spans, *gists]

    def check_record(self, session, record):
        ids = session.committed
        assert (record.tokens, record.gist_dim) == (len(ids), session.dim)
        assert record.gist_blocks == (session.made if session.made < session.blocks else None)
        assert record.state.get("sum", 0) == ids.sum()
        assert np.array_equal(record.tail, ids[len(ids) // SIZE * SIZE :])

    def check_spans(self, ids, whole, some):
        blocks = len(ids) // SIZE
        assert np.array_equal(whole.ids.ravel(), ids[: blocks * SIZE])
        assert whole.missing.tolist() == [blocks]
        assert np.array_equal(some.ids, whole.ids[some.blocks])
        assert len(some.blocks) + len(some.missing) == blocks // 2 + 1


any_steps = st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 1 << 16)), min_size=5, max_size=40)


@pytest.mark.parametrize("kind", sorted(HARNESSES))
@settings(max_examples=60, deadline=None)
@given(steps=any_steps)
def test_random_histories_match_plain_lists(kind, steps):
    """Law: after any sequence of calls and restarts a store holds exactly what was written, and committed, no more."""
    live_through(kind, steps)


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(HARNESSES))
@settings(max_examples=1000, deadline=None)
@given(steps=any_steps)
def test_many_random_histories_match_plain_lists(kind, steps):
    """Law: the same, looked for longer."""
    live_through(kind, steps)


def live_through(kind, steps):
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

"""Random notes of several sessions, compared after every step with plain lists."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mc_core.notes import Note
from store_harness import HARNESSES, make_record

KEYS = [f"{kind}:{number}" for kind in "ab" for number in range(4)]
STEPS = ("commit", "commit", "commit", "rewind", "cut", "fork", "delete_note", "delete", "create", "restart")


@dataclass
class Expected:
    """A session as it should be: its length, and its notes in the order of their first writing, seen or kept."""

    tokens: int = 0
    fence: int = 0
    notes: dict[str, Note] = field(default_factory=dict)
    kept: dict[str, Note] = field(default_factory=dict)
    order: dict[str, int] = field(default_factory=dict)

    def page(self):
        return sorted(self.notes.values(), key=lambda note: (note.position, self.order[note.key]))


class World:
    """A store, and what it should hold."""

    def __init__(self, harness):
        self.harness, self.store = harness, harness.open()
        self.sessions: dict[str, Expected] = {}
        self.made = self.written = 0

    def step(self, kind, seed):
        rng = np.random.default_rng(seed)
        names = sorted(self.sessions)
        if kind in ("create", "restart") or not names:
            getattr(self, kind if kind == "restart" else "create")()
        else:
            name = names[rng.integers(len(names))]
            getattr(self, kind)(name, self.sessions[name], rng)
        self.check()

    def create(self):
        self.made += 1
        self.store.create(make_record(f"s{self.made}", gist_dim=0)).result()
        self.sessions[f"s{self.made}"] = Expected()

    def restart(self):
        self.store.close()
        self.store = self.harness.open()
        for session in self.sessions.values():
            session.fence = 0

    def record(self, name, session, tokens):
        """A session of blocks that nobody looks at."""
        if not session.fence:
            session.fence = self.store.open(name, "alice", "me").result().fence
        first = min(session.tokens, tokens) // 4
        self.store.write_spans(name, session.fence, first, np.zeros((tokens // 4 - first, 4), np.int32))
        return make_record(name, gist_dim=0, tokens=tokens, tail=np.zeros(tokens % 4), fence=session.fence)

    def commit(self, name, session, rng, tokens=None, beyond="drop"):
        tokens = session.tokens + int(rng.integers(12)) if tokens is None else tokens
        chosen = rng.choice(KEYS, rng.integers(4), replace=False) if beyond == "drop" else []
        notes = [
            Note(str(key), int(rng.integers(tokens + 1)), rng.bytes(9), bool(rng.random() < 0.2)) for key in chosen
        ]
        others = [key for other, its in self.sessions.items() if other != name for key in self.taken(its)]
        notes = [replace(note, indexed=note.indexed and note.key not in others) for note in notes]
        self.store.commit(self.record(name, session, tokens), notes, beyond).result()
        session.tokens = tokens
        past = {key: note for key, note in session.notes.items() if note.position > tokens}
        session.notes = {key: note for key, note in session.notes.items() if key not in past}
        if beyond == "keep":
            session.kept |= past
        if beyond == "restore":
            session.notes |= {key: note for key, note in session.kept.items() if note.position <= tokens}
        if beyond != "keep":
            session.kept = {}
        for note in notes:
            if note.key not in session.notes:
                self.written += 1
                session.order[note.key] = self.written
            session.notes[note.key] = note

    def taken(self, session):
        return [note.key for note in (*session.notes.values(), *session.kept.values()) if note.indexed]

    def rewind(self, name, session, rng):
        self.commit(name, session, rng, int(rng.integers(session.tokens + 1)))

    def cut(self, name, session, rng):
        """As a turn that writes the end anew, and perhaps fails; a restart may come in between."""
        before = session.tokens
        self.commit(name, session, rng, int(rng.integers(session.tokens + 1)), "keep")
        self.check()
        if rng.random() < 0.5:
            self.restart()
        if rng.random() < 0.5:
            self.commit(name, session, rng, before, "restore")

    def fork(self, name, session, rng):
        self.made += 1
        child = Expected(int(rng.integers(session.tokens + 1)), order=session.order)
        child.notes = {
            key: note for key, note in session.notes.items() if note.position <= child.tokens and not note.indexed
        }
        record = make_record(f"s{self.made}", gist_dim=0, tokens=child.tokens, tail=np.zeros(child.tokens % 4))
        self.store.fork(name, "alice", record).result()
        child.order = {note.key: number - len(KEYS) for number, note in enumerate(child.page())}
        self.sessions[f"s{self.made}"] = child

    def delete_note(self, name, session, rng):
        key = str(rng.choice(KEYS))
        there = key in session.notes or key in session.kept
        assert self.store.delete_note(name, "alice", key).result() is there
        session.notes.pop(key, None)
        session.kept.pop(key, None)

    def delete(self, name, session, rng):
        self.store.delete(name, "alice").result()
        del self.sessions[name]

    def check(self):
        owners = {}
        for name, session in self.sessions.items():
            page = self.store.notes(name, "alice").result()
            assert (list(page.notes), page.next, page.corrupt) == (session.page(), None, ())
            newest = self.store.notes(name, "alice", prefix="b:", limit=2, newest_first=True).result()
            assert list(newest.notes) == [note for note in session.page()[::-1] if note.key[0] == "b"][:2]
            owners |= {note.key: (name, note) for note in page.notes if note.indexed}
        for key in KEYS:
            assert self.store.find_note("alice", key).result() == owners.get(key)


any_steps = st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 1 << 16)), min_size=5, max_size=30)


@pytest.mark.parametrize("kind", sorted(HARNESSES))
@settings(max_examples=50, deadline=None)
@given(steps=any_steps)
def test_random_notes_match_plain_lists(kind, steps):
    """Law: after any commits, rewinds, cuts, forks, deletions and restarts a store has exactly the notes it should."""
    harness = HARNESSES[kind]()
    world = World(harness)
    try:
        for step in steps:
            world.step(*step)
        for name in sorted(world.sessions):
            world.store.delete(name, "alice").result()
        assert harness.count_everything() == 0
    finally:
        world.store.close()
        harness.cleanup()

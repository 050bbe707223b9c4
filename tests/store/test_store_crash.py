"""kill -9 in the middle of writing."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from crash_child import SESSIONS, ids_of
from store_harness import make_gists

HERE = Path(__file__).parent


def start_child(url):
    path = os.pathsep.join([str(HERE.parents[1]), str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(HERE / "crash_child.py"), url]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path})


def acknowledged(child, count):
    """Kills the child after its first ``count`` acknowledgements; tokens acknowledged of each session."""
    lines = [child.stdout.readline() for _ in range(count)]
    assert lines[-1], "the child died by itself"
    child.send_signal(signal.SIGKILL)
    lines += child.stdout.read().splitlines(keepends=True)
    assert child.wait() == -signal.SIGKILL
    return {name: int(tokens) for name, tokens, _ in (line.split() for line in lines if line.endswith("\n"))}


@pytest.mark.parametrize("rounds", [5, pytest.param(30, marks=pytest.mark.slow)])
def test_kill_nine_loses_no_acknowledged_turn(harness, rounds):
    """Law: after kill -9 every acknowledged commit is whole, at every level, with the notes of its turns, and nothing
    beyond it is visible; a session killed between a reshape and its commit has all of its spans, and the gists of the
    first blocks that were made good."""
    rng = np.random.default_rng()
    for _ in range(rounds):
        known = acknowledged(start_child(harness.url), int(rng.integers(1, 80)))
        store = harness.open()
        for name in (f"s{number}" for number in range(SESSIONS)):
            record = store.record(name, "alice").result()
            assert record.tokens >= known.get(name, 0)
            assert record.state.get("tokens", 0) == record.tokens
            check_rows(store, record, ids_of(name, record.tokens))
            check_notes(store, record)
        store.close()


def check_rows(store, record, ids):
    name, size = record.session_id, record.block_size
    assert np.array_equal(record.tail, ids[record.blocks * size :])
    spans = store.read_span_range(name, 0, record.blocks + 100).result()
    assert np.array_equal(spans.ids.ravel(), ids[: record.blocks * size])
    assert len(spans.missing) == 100
    for level in range(1, 6):
        batch = store.read_gist_range(name, level, 0, record.rows(level) + 9).result()
        expected = make_gists(ids, size, level, 0, record.gist_dim)
        assert np.array_equal(batch.gists, expected[: record.rows(level)])
        assert len(batch.missing) == 9
    assert record.gist_blocks is None or record.gist_dim != record.state.get("dim", 2)


def check_notes(store, record):
    page = store.notes(record.session_id, "alice", limit=1000).result()
    assert (page.next, page.corrupt) == (None, ())
    turns = record.state.get("turns", 0)
    assert [note.key for note in page.notes] == [f"turn:{number}" for number in range(1, turns + 1)]
    assert not turns or page.notes[-1].position == record.tokens

"""kill -9 in the middle of writing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from crash_child import SESSIONS, ids_of
from store_harness import make_gists

HERE = Path(__file__).parent
ROUNDS = 5


def start_child(url):
    path = os.pathsep.join([str(HERE.parents[1]), str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(HERE / "crash_child.py"), url]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path})


def acknowledged(child, seconds):
    """Kills the child ``seconds`` after its first acknowledgement; tokens acknowledged of each session."""
    first = child.stdout.readline()
    assert first, "the child died by itself"
    time.sleep(seconds)
    child.send_signal(signal.SIGKILL)
    lines = [first, *child.stdout.read().splitlines(keepends=True)]
    assert child.wait() == -signal.SIGKILL
    return {name: int(tokens) for name, tokens, _ in (line.split() for line in lines if line.endswith("\n"))}


def test_kill_nine_loses_no_acknowledged_turn(harness):
    """Law: after kill -9 every acknowledged commit is whole, at every level, and nothing beyond it is visible."""
    rng = np.random.default_rng(0)
    for _ in range(ROUNDS):
        known = acknowledged(start_child(harness.url), float(rng.uniform(0.05, 0.4)))
        store = harness.open()
        assert known
        for name in (f"s{number}" for number in range(SESSIONS)):
            record = store.record(name, "alice").result()
            assert record.tokens >= known.get(name, 0)
            assert record.state.get("tokens", 0) == record.tokens
            ids = ids_of(name, record.tokens)
            assert np.array_equal(record.tail, ids[record.blocks * record.block_size :])
            spans = store.read_span_range(name, 0, record.blocks + 100).result()
            assert np.array_equal(spans.ids.ravel(), ids[: record.blocks * record.block_size])
            assert len(spans.missing) == 100
            for level in range(1, 6):
                batch = store.read_gist_range(name, level, 0, record.rows(level) + 9).result()
                assert np.array_equal(batch.gists, make_gists(ids, record.block_size, level, 0))
                assert len(batch.missing) == 9
        store.close()

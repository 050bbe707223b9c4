"""Writes turns to several sessions without end and prints each acknowledged commit; killed by test_store_crash.py."""

import sys
from dataclasses import replace

import numpy as np

from mc_core.notes import Note
from mc_core.store import SessionRecord, SessionStore
from server.stores import open_store
from store_harness import make_gists, make_record

SESSIONS = 4


def ids_of(session: str, count: int) -> np.ndarray:
    """The one history that a session ever has, cut to ``count`` tokens."""
    return np.random.default_rng(sum(session.encode())).integers(0, 50_000, 2_000_000, dtype=np.int32)[:count]


def turn(store: SessionStore, record: SessionRecord, ids: np.ndarray, reshape: bool) -> SessionRecord:
    """Stages the rows of one turn, block by block, and queues its commit; the future prints when it is acknowledged.

    reshape: take gists of another width first. ``state["dim"]`` is that of the committed ones.
    """
    name, size, fence = record.session_id, record.block_size, record.fence
    for block in range(record.blocks, len(ids) // size):
        store.write_spans(name, fence, block, ids[block * size : (block + 1) * size].reshape(1, size))
    if reshape:
        record = replace(record, gist_dim=record.gist_dim % 4 + 1)
        store.reshape(name, fence, gist_dim=record.gist_dim, gist_dtype="float32", gist_keys=0, key_dim=0)
    whole = record.gist_dim == record.state.get("dim", 2)
    for level in range(1, 11):
        first = record.rows(level) if whole else 0
        gists = make_gists(ids, size, level, first, record.gist_dim)
        for at in range(0, len(gists), 50):
            store.write_gists(name, fence, level, first + at, gists[at : at + 50])
    turns = record.state.get("turns", 0) + 1
    state = {"tokens": len(ids), "dim": record.gist_dim, "turns": turns}
    record = replace(record, tokens=len(ids), tail=ids[len(ids) // size * size :], state=state)
    future = store.commit(record, [Note(f"turn:{turns}", len(ids), name.encode() * 9)])
    future.add_done_callback(lambda done: print(name, len(ids), done.result(), flush=True))
    return record


def main(url: str) -> None:
    store = open_store(url)
    records = {}
    for name in (f"s{number}" for number in range(SESSIONS)):
        store.create(make_record(name)).exception()  # a later round finds it there
        records[name] = store.open(name, "alice", "child").result().record
    histories = {name: ids_of(name, 2_000_000) for name in records}
    rng = np.random.default_rng()
    while True:
        futures = []
        for name, record in records.items():
            ids = histories[name][: record.tokens + int(rng.integers(1, 60))]
            records[name] = turn(store, record, ids, reshape=rng.random() < 0.2)
            futures.append(store.record(name, "alice"))
        futures[0].result()


if __name__ == "__main__":
    main(sys.argv[1])

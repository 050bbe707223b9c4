"""Vectors made of ids, a few blocks at a time, of a session that is used meanwhile.

What other networks made is of no use, and to make it all anew takes as long as the ingest did. So the session goes on
without it, and this job goes through the history from its first block on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mc_core.engine.core import EngineCore
from mc_core.engine.work import Pause, Wait, Work
from mc_core.session.session import Session
from mc_core.session.staging import write_gists
from mc_core.store import StoreDownError

SLICE_BLOCKS = 32
"""Made between two steps of the engine: 13 ms of a core for SmolLM2's lens keys, 0.2 s where an encoder makes gists."""
STORED_BLOCKS = 1024
"""Read, and written, at once: what a crash has made anew."""
REST = 3
"""While turns run, times as long as a slice took until the next one, whichever session's that is."""
PATIENCE = 1.0
"""Seconds until a store that is away is asked again."""


class Pace:
    """Of all these jobs of one engine: while turns run they take a quarter of its time together."""

    def __init__(self, busy: Callable[[], bool]) -> None:
        """busy: whether turns run."""
        self.busy, self.due = busy, 0.0

    @property
    def rests(self) -> bool:
        """Whether nothing is to be made before ``due`` (monotonic seconds)."""
        return self.busy() and time.monotonic() < self.due

    def took(self, seconds: float) -> None:
        """Of a slice that was just made."""
        self.due = time.monotonic() + REST * seconds


def make_vectors(
    core: EngineCore, session: Session, goes_on: Callable[[], bool], pace: Pace
) -> Generator[Work, Any, None]:
    """Until the session's tree is whole and the store has its gists, or it no longer ``goes_on``."""
    tree, size = session.tree, session.block_size
    step = max(1, min(SLICE_BLOCKS, core.config.ingest_tokens // size))
    ahead, first, cuts = np.empty((0, size), np.int32), 0, -1
    while goes_on() and not tree.whole:
        made = tree.made
        if tree.made < tree.num_blocks:
            if tree.cuts != cuts or not first <= tree.made < first + len(ahead):
                first, cuts = tree.made, tree.cuts
                ahead = yield from _read(core, session, first)
                continue  # the history may be another one by now
            if pace.rests:
                yield Wait(Future(), pace.due)
                continue
            began, at = time.monotonic(), tree.made - first
            session.gist_calls += tree.make(ahead[at : at + step - tree.made % step])
            pace.took(time.monotonic() - began)
        waiting = min(tree.made, session.stored_blocks) - session.staged.get(1, 0)
        if waiting >= STORED_BLOCKS or (waiting > 0 and tree.made >= session.stored_blocks):
            yield from _write(core, session)
        elif tree.made == tree.num_blocks:
            session.vectors_are_made()
        yield Pause(0 if tree.made == made or pace.rests else step * size)


def _read(core: EngineCore, session: Session, first: int) -> Generator[Work, Any, NDArray[np.int32]]:
    """Ids [n, K] of blocks from ``first`` on, zeros where they are lost; none while the store is away."""
    tree, cuts = session.tree, session.tree.cuts
    blocks = np.arange(first, min(tree.num_blocks, first + STORED_BLOCKS))
    missing = tree.missing(blocks)
    known = np.setdiff1d(blocks, missing)
    ids = np.zeros((len(blocks), session.block_size), np.int32)
    ids[known - first] = tree.block_ids(known)
    if len(missing):
        future = core.store.read_spans(session.id, missing)
        yield Wait(future)
        if isinstance(future.exception(), StoreDownError):
            yield Wait(Future(), time.monotonic() + PATIENCE)
            return ids[:0]
        batch = future.result()
        ids[batch.blocks - first] = batch.ids
        if tree.cuts == cuts:
            tree.lose(np.setdiff1d(missing, batch.blocks))
    return ids


def _write(core: EngineCore, session: Session) -> Generator[Work, Any, None]:
    cuts = session.tree.cuts
    futures, staged = write_gists(session, core.store, session.stored_blocks)
    for future in futures:
        yield Wait(future)
        future.result()
    if session.tree.cuts == cuts:
        session.staged |= staged

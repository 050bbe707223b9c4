"""What of a session the store does not hold yet."""

from __future__ import annotations

from concurrent.futures import Future

import numpy as np

from mc_core.session.session import Session
from mc_core.store import SessionStore, rows_at

WRITTEN = 4096
"""Rows in one write: a larger one would keep other sessions' commits waiting."""


Written = tuple[list[Future[None]], dict[int, int]]
"""The store's answers that are awaited, and what they add to ``session.staged``."""


def write_rows(session: Session, store: SessionStore) -> Written:
    """Hand the store all spans and gists that it lacks; they count only after a commit. While vectors are made of ids,
    their gists are left to ``write_gists``."""
    tree = session.tree
    futures, blocks = [], tree.num_blocks
    for at in range(session.staged.get(0, 0), blocks, WRITTEN):
        ids = tree.block_ids(np.arange(at, min(blocks, at + WRITTEN)))
        futures.append(store.write_spans(session.id, session.fence, at, ids))
    more, staged = write_gists(session, store, blocks) if tree.whole else ([], {})
    return [*futures, *more], {0: blocks, **staged}


def write_gists(session: Session, store: SessionStore, blocks: int) -> Written:
    """Hand the store the gists that it lacks of the first ``blocks`` blocks, as far as they are made.

    The highest level first: with the gist of its last block all nodes are there that this completes.
    """
    tree = session.tree
    futures: list[Future[None]] = []
    staged: dict[int, int] = {}
    for level in range(tree.num_levels, 0, -1):
        staged[level] = end = min(tree.count(level), rows_at(level, blocks, session.block_size))
        for at in range(session.staged.get(level, 0), end, WRITTEN):
            stop = min(end, at + WRITTEN)
            gists = tree.gist_range(level, at, stop).cpu().numpy()
            keys = tree.lens_keys(at, stop).cpu().numpy() if level == 1 and tree.config.lens_keys else None
            futures.append(store.write_gists(session.id, session.fence, level, at, gists, keys))
    return futures, staged

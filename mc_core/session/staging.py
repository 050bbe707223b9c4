"""What of a session the store does not hold yet."""

from __future__ import annotations

from concurrent.futures import Future

import numpy as np

from mc_core.session.session import Session
from mc_core.store import SessionStore

WRITTEN = 4096
"""Rows in one write: a larger one would keep other sessions' commits waiting."""


def write_rows(session: Session, store: SessionStore) -> tuple[list[Future[None]], dict[int, int]]:
    """Hand the store all spans and gists that it lacks -> the futures of its answers, and what ``session.staged`` is
    once they are all there. They count only after a commit."""
    tree, lease = session.tree, (session.id, session.fence)
    futures, staged = [], {level: tree.count(level) for level in range(tree.num_levels + 1)}
    for level, end in staged.items():
        for at in range(session.staged.get(level, 0), end, WRITTEN):
            stop = min(end, at + WRITTEN)
            if level == 0:
                futures.append(store.write_spans(*lease, at, tree.block_ids(np.arange(at, stop))))
                continue
            gists = tree.gist_range(level, at, stop).cpu().numpy()
            keys = tree.lens_keys(at, stop).cpu().numpy() if level == 1 and tree.config.lens_keys else None
            futures.append(store.write_gists(*lease, level, at, gists, keys))
    return futures, staged

"""Jobs beside turns: ingest, commit, rollback, rewind. Each is one readable generator."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mc_core.engine.core import EngineCore
from mc_core.engine.refocus import evict
from mc_core.engine.work import Pause, Wait, Work
from mc_core.errors import ConfigError, SpanMissingError
from mc_core.session.session import Session

ROWS = 4096
"""Rows in one write: a larger one would keep other sessions' commits waiting."""


def ingest(core: EngineCore, session: Session, ids: NDArray[np.int32]) -> Generator[Work, Any, int]:
    """Append history in slices; each is staged to the store, so that memory stays bounded."""
    step = core.config.ingest_tokens
    for at in range(0, len(ids), step):
        part = ids[at : at + step]
        session.append(part)
        yield from stage(core, session)
        evict(core, session)
        yield Pause(len(part))
    return session.tokens


def stage(core: EngineCore, session: Session) -> Generator[Work, Any, None]:
    """Write new spans and gists to the store and wait for it; they count only after a commit."""
    if not session.durable:
        return
    tree, store, futures = session.tree, core.store, []
    first, blocks = session.staged.get(0, 0), tree.num_blocks
    for at in range(first, blocks, ROWS):
        ids = tree.block_ids(np.arange(at, min(blocks, at + ROWS)))
        futures.append(store.write_spans(session.id, session.fence, at, ids))
    session.staged[0] = blocks
    for level in range(1, tree.num_levels + 1):
        end = tree.count(level)
        for at in range(session.staged.get(level, 0), end, ROWS):
            stop = min(end, at + ROWS)
            gists = tree.gist_range(level, at, stop).cpu().numpy()
            keys = None
            if level == 1 and tree.config.lens_keys:
                keys = tree.lens_keys(at, stop).cpu().numpy()
            futures.append(store.write_gists(session.id, session.fence, level, at, gists, keys))
        session.staged[level] = end
    for future in futures:
        yield Wait(future)
        future.result()
    session.stored_blocks = blocks


def commit(core: EngineCore, session: Session) -> Generator[Work, Any, None]:
    """Store all of the history; when this returns, it survives a crash."""
    yield from stage(core, session)
    session.updated, committed = time.time(), session.tokens
    if session.durable:
        future = core.store.commit(session.record())
        yield Wait(future)
        session.sequence = future.result()
    session.committed_tokens = committed
    evict(core, session)


def rollback(core: EngineCore, session: Session) -> Generator[Work, Any, None]:
    """Back to the last acknowledged token, as if nothing had happened since."""
    drop_uncommitted(session)
    return
    yield Pause(0)


def drop_uncommitted(session: Session) -> None:
    """What this needs is never evicted (``Session.blocks_to_keep``), so it does not wait for the store."""
    session.rewind(session.committed_tokens)


def rewind(core: EngineCore, session: Session, position: int) -> Generator[Work, Any, int]:
    """Cut the history at a position and store that."""
    if not 0 <= position <= session.tokens:
        raise ConfigError(f"position must lie in [0, {session.tokens}], got {position}")
    missing = session.tree.missing(session.blocks_to_rewind(position))
    if len(missing):
        future = core.store.read_spans(session.id, missing)
        yield Wait(future)
        batch = future.result()
        if len(batch.blocks) < len(missing):
            lost = np.setdiff1d(missing, batch.blocks)
            raise SpanMissingError(f"cannot rewind to {position}: the store lost the spans of blocks {lost.tolist()}")
        session.tree.restore(batch.blocks, batch.ids)
    session.rewind(position)
    session.committed_tokens = min(session.committed_tokens, position)
    yield from commit(core, session)
    return session.tokens

"""Jobs beside turns: ingest, commit, rewind. Each is one readable generator."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mc_core.context.protection import Range
from mc_core.context.sources import UNTITLED, About
from mc_core.engine.core import EngineCore
from mc_core.engine.refocus_job import evict
from mc_core.engine.requests import Turn
from mc_core.engine.work import Pause, Wait, Work
from mc_core.errors import ConfigError, SpanMissingError
from mc_core.notes import Beyond, Note
from mc_core.session.pins import chosen_after
from mc_core.session.session import Session
from mc_core.session.staging import write_rows
from mc_core.store import SessionRecord, SpanBatch

logger = logging.getLogger(__name__)
T = TypeVar("T")


def ingest(
    core: EngineCore, session: Session, ids: NDArray[np.int32], about: About = UNTITLED
) -> Generator[Work, Any, int]:
    """Append history in slices; each is staged to the store, so that memory stays bounded."""
    step = core.config.ingest_tokens
    session.tell(about)
    for at in range(0, len(ids), step):
        part = ids[at : at + step]
        session.append(part)
        if session.cut_end is None:
            yield from stage(core, session)
            evict(core, session)
        core.moved(session, "ingest")
        yield Pause(len(part))
    session.tell(UNTITLED)
    return session.tokens


def append(
    core: EngineCore,
    session: Session,
    ids: NDArray[np.int32],
    cut: int | None,
    pins: Sequence[Range],
    then: Callable[[], None],
) -> Generator[Work, Any, int]:
    """What a turn does beside its reply: cut the history, pin, append, do what is left to do, and store it as one."""
    yield from _begin(core, session, cut, pins)
    yield from ingest(core, session, ids)
    then()
    yield from commit(core, session)
    return session.tokens


def stage(core: EngineCore, session: Session) -> Generator[Work, Any, None]:
    """Write new spans and gists to the store and wait for it; they count only after a commit."""
    if not session.durable:
        return
    futures, staged = write_rows(session, core.store)
    for future in futures:
        yield Wait(future)
        future.result()
    session.staged |= staged


def commit(core: EngineCore, session: Session, notes: Sequence[Note] = ()) -> Generator[Work, Any, None]:
    """Store all of the history, and these notes beside the session's; when this returns, they survive a crash."""
    for note in notes:
        session.note(note)
    if session.cut_end is not None:
        # Rows below the committed length can't be replaced; so the store first goes back to where they differ, with a
        # note of what stood there: where the turn then never comes, the session's next user finds it as it was.
        yield from _write(core, session, session.cut_end.record, beyond="keep")
        session.cut_stored()
        session.broken = session.durable
    yield from stage(core, session)
    yield from _write(core, session, session.record(), tuple(session.notes.values()))
    session.broken = False
    session.notes = {}
    session.updated = time.time()
    session.acknowledge()
    try:
        evict(core, session)
    except Exception:
        # What is stored must not be told to have failed; it stays in memory until the next eviction.
        logger.exception("session %s could not be evicted", session.id)
    core.moved(session, "commit")


def sequence_to_come(session: Session) -> int | None:
    """The sequence number that the next commit gives the session; None for one that is not stored."""
    return session.sequence + (1 if session.cut_end is None else 2) if session.durable else None


def _write(
    core: EngineCore, session: Session, record: SessionRecord, notes: Sequence[Note] = (), beyond: Beyond = "drop"
) -> Generator[Work, Any, None]:
    if session.durable:
        future = core.store.commit(record, notes, beyond)
        yield Wait(future)
        session.sequence = future.result()


def begin(core: EngineCore, session: Session, turn: Turn) -> Generator[Work, Any, None]:
    """Cut the history where the turn says, and pin what it wants pinned; a failed turn takes both back."""
    yield from _begin(core, session, turn.cut, turn.pins)


def _begin(core: EngineCore, session: Session, cut: int | None, pins: Sequence[Range]) -> Generator[Work, Any, None]:
    if cut is not None:
        yield from _fetch(core, session, _blocks(session, cut, session.tokens))
        yield from _fetch(core, session, session.blocks_to_rewind(cut))
        session.cut(cut)
    for start, end in pins:
        session.pin(start, end)


def read(core: EngineCore, session: Session, start: int, end: int) -> Generator[Work, Any, NDArray[np.int32]]:
    """The ids [start, end) of the history, from the store where they have left memory."""
    yield from _fetch(core, session, _blocks(session, start, end))
    return session.tree.ids(start, end)


def peek(core: EngineCore, session: Session, start: int, end: int) -> Generator[Work, Any, NDArray[np.int32]]:
    """The ids [start, end) of the history for one who only looks: what is in memory stays as it is."""
    tree, size, end = session.tree, session.block_size, min(end, session.tokens)
    blocks = _blocks(session, start, end)
    missing = tree.missing(blocks)
    known = np.setdiff1d(blocks, missing)
    ids = np.zeros((len(blocks), size), np.int32)
    ids[np.searchsorted(blocks, known)] = tree.block_ids(known)
    first = tree.num_blocks * size
    opened = tree.ids(max(start, first), end) if end > first else np.empty(0, np.int32)
    if len(missing):
        batch = yield from _spans(core, session, missing)
        ids[np.searchsorted(blocks, batch.blocks)] = batch.ids
    begin = int(blocks[0]) * size if len(blocks) else start
    return np.concatenate([ids.reshape(-1)[start - begin : min(end, first) - begin], opened]) if len(blocks) else opened


def pin(core: EngineCore, session: Session, pin: Sequence[Range], unpin: Sequence[Range]) -> Generator[Work, Any, None]:
    """Let go of ``unpin``, keep ``pin`` raw from now on, and store that."""
    wanted = chosen_after(session, pin, unpin)
    blocks = session.wc.blocks_to_choose(wanted)
    yield from _fetch(core, session, blocks[blocks < session.tree.num_blocks])
    session.choose(wanted)
    yield from commit(core, session)


def _blocks(session: Session, start: int, end: int) -> NDArray[np.int64]:
    size = session.block_size
    return np.arange(start // size, min(-(-end // size), session.tree.num_blocks))


def _fetch(core: EngineCore, session: Session, blocks: NDArray[np.int64]) -> Generator[Work, Any, None]:
    missing = session.tree.missing(blocks)
    if len(missing):
        batch = yield from _spans(core, session, missing)
        session.tree.restore(batch.blocks, batch.ids)


def _spans(core: EngineCore, session: Session, missing: NDArray[np.int64]) -> Generator[Work, Any, SpanBatch]:
    """Spans from the store, all of them."""
    future = core.store.read_spans(session.id, missing)
    yield Wait(future)
    batch = future.result()
    if len(batch.blocks) < len(missing):
        lost = np.setdiff1d(missing, batch.blocks)
        raise SpanMissingError(f"the store lost the spans of blocks {lost.tolist()[:8]} of session {session.id}")
    return batch


def undone_by_error(core: EngineCore, session: Session, job: Generator[Work, Any, T]) -> Generator[Work, Any, T]:
    """The job; if it fails, the session goes back to its last acknowledged token."""
    try:
        return (yield from job)
    except Exception:
        rollback(core, session)
        raise


def rollback(core: EngineCore, session: Session) -> None:
    """Drop what was not committed."""
    session.rollback()
    core.moved(session, "rollback")


def rewind(
    core: EngineCore, session: Session, position: int, then: Callable[[], None] = lambda: None
) -> Generator[Work, Any, int]:
    """Cut the history at a position, do what is left to do then, and store that; where the store refuses, what was cut
    is lost to memory."""
    if not 0 <= position <= session.tokens:
        raise ConfigError(f"position must lie in [0, {session.tokens}], got {position}")
    yield from _fetch(core, session, session.blocks_to_rewind(position))
    session.rewind(position)
    then()
    yield from commit(core, session)
    return session.tokens

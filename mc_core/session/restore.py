"""Rebuilding a session's tree and lens index from what a store holds, and mending what it lost."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mc_core.context.plan import Edit, Plan
from mc_core.context.protection import merged, without
from mc_core.context.sources import Sources
from mc_core.errors import StoreError
from mc_core.session.cut_end import CUT_OFF
from mc_core.session.session import Session
from mc_core.session.staging import WRITTEN, write_rows
from mc_core.store import GistBatch, SessionRecord, SessionStore, SpanBatch
from mc_core.tree.levels import nodes_at_once
from mc_core.tree.tree import MegaContextTree

Ids = NDArray[np.int32]
Ints = NDArray[np.int64]
Batch = TypeVar("Batch")

logger = logging.getLogger(__name__)
ROWS = 65_536
"""Rows read at once: bounds the memory of waking a long session."""
AHEAD = 3
"""Reads under way at a time: the store decodes rows while others are taken in."""


@dataclass(eq=False)
class Rows:
    """One vector, or several, of each of n nodes [n, ...] on the host; those that are not ``known`` [n] are zero."""

    values: Tensor
    known: NDArray[np.bool_]

    @classmethod
    def unknown(cls, count: int, shape: tuple[int, ...], dtype: torch.dtype) -> Rows:
        return cls(torch.zeros(count, *shape, dtype=dtype), np.zeros(count, bool))

    def put(self, nodes: Ints, values: Tensor) -> None:
        self.values[torch.from_numpy(nodes)] = values.to(self.values)
        self.known[nodes] = True


class Restoring:
    """Gists and lens keys of one committed record, as far as they are of the present networks: read where they are
    sound, else made from ids. A block whose span is lost too has a gist of zeros, as it has nothing to say.

    ``made``: how many blocks, from the first on, have vectors so; the others get theirs later.
    """

    def __init__(self, session: Session, record: SessionRecord, store: SessionStore) -> None:
        """session: as assembled for the present bundle, with an empty tree; the lease is the record's."""
        self.session, self.record, self.store = session, record, store
        self.empty = session.tree
        config = self.empty.config
        shape = {name: getattr(record, name) for name in session.row_shape}
        same_gists = record.state["gists"] == session.gist_fingerprint and record.gist_dim == self.empty.gist_width
        same_keys = record.state.get("keys") == session.key_fingerprint and shape == session.row_shape
        # Rows are of one shape and of the networks that the record names: if any of that changes, all are replaced.
        self.stale = not (same_gists and same_keys)
        self.made = 0 if self.stale else record.rows(1)
        counts = () if self.stale else _counts(record)
        self.gists = [Rows.unknown(rows, (self.empty.gist_width,), config.gist_dtype) for rows in counts]
        self.keys = Rows.unknown(self.made, (config.lens_keys, config.lens_key_dim), config.gist_dtype)
        self.lost: list[Ints] = []

    def tree(self) -> MegaContextTree:
        """The tree of the record; the session's lens, a new one, and working context are brought in step with it.

        A lost or corrupt span is counted and never filled in: if it stood raw, its gist stands from now on.
        StoreError if spans are lost that must stand raw, since nothing may be invented in their place.
        """
        if self.made < self.record.blocks:
            logger.info(
                "session %s: %d of its %d blocks have vectors of the present networks; the others are made from ids",
                self.record.session_id,
                self.made,
                self.record.blocks,
            )
        id, levels = self.record.session_id, enumerate(self.gists, start=1)
        parts = [(level, *part) for level, rows in levels for part in _parts(len(rows.known))]
        gists = Reads(partial(self.store.read_gist_range, id, *part) for part in parts)
        spans = Reads(partial(self.store.read_span_range, id, *part) for part in _parts(self.record.blocks))
        blocks, ids, lost = self._take_spans(spans)
        for (level, *_), batch in zip(parts, gists, strict=True):
            self._take_gists(level, batch)
        if self.session.excerpts is not None:
            self.session.excerpts.append(self.record.tail)
        self._make(lost)
        self._make_parents()
        empty = self.empty
        tree = MegaContextTree.load(
            empty.config,
            empty.gistnet,
            empty.embed,
            gists=[rows.values for rows in self.gists],
            hot_ids=self.record.tail,
            num_tokens=self.record.tokens,
            keys=self.keys.values,
            key_net=empty.key_net,
            made=self.made,
        )
        tree.lose(lost)
        tree.restore(blocks, ids)
        return tree

    def mend(self) -> None:
        """Store what was made anew, or that there are no vectors yet and of which networks they will be, so that it
        happens once; the session has its tree by now."""
        record, store = self.record, self.store
        if not self.stale and not any(map(len, self.lost)):
            return
        if self.stale:
            # No gists are there between this and the commit, so that a crash leaves nothing of two networks.
            store.reshape(record.session_id, record.fence, **self.session.row_shape).result()
        for level, rows in enumerate(self.gists, start=1):
            for first, end in _runs(self.lost[level - 1]):
                keys = self.keys.values[first:end].numpy() if level == 1 and self.empty.config.lens_keys else None
                values = rows.values[first:end].numpy()
                store.write_gists(record.session_id, record.fence, level, first, values, keys).result()
        stored = self.session.record()
        cut_off = record.state.get(CUT_OFF)
        if cut_off is None:
            self.session.sequence = store.commit(stored).result()
        else:  # What a turn cut off is put back later, and may be needed by then: after a crash in between.
            stored = replace(stored, state={**stored.state, CUT_OFF: cut_off})
            self.session.sequence = store.commit(stored, beyond="keep").result()

    def put_back(self) -> None:
        """Of a turn that was about to replace the end of the history, and never did: that end, and store it."""
        end = self.record.state.get(CUT_OFF)
        if end is None:
            return
        session = self.session
        for start, stop in end.get("pins", ()):
            session.pin(start, stop)
        session.append(np.array(end["ids"], np.int32))
        if chosen := [(int(start), int(stop)) for start, stop in end.get("chosen", ())]:
            session.choose(merged([*session.wc.protection.chosen, *chosen]))
        session.prefixes = [(str(digest), int(at)) for digest, at in end["prefixes"]]
        session.sources = Sources.of_json(end.get("sources", ()))
        futures, staged = write_rows(session, self.store)
        for future in futures:
            future.result()
        session.staged |= staged
        session.sequence = self.store.commit(session.record(), beyond="restore").result()
        session.acknowledge()

    def _take_gists(self, level: int, batch: GistBatch) -> None:
        """Take what is stored and sound."""
        self.gists[level - 1].put(batch.indices, torch.from_numpy(np.array(batch.gists)))
        if level == 1 and batch.keys is not None:
            self.keys.put(batch.indices, torch.from_numpy(np.array(batch.keys)))

    def _take_spans(self, batches: Iterable[SpanBatch]) -> tuple[Ints, Ids, Ints]:
        """Tell the lens of all spans, a part at a time -> (blocks, ids) that stand raw, and the blocks whose spans are
        lost."""
        session, record = self.session, self.record
        wc = session.wc
        raw = wc.indices[(wc.levels == 0) & (wc.indices < record.blocks)]
        kept_blocks, kept_ids = [np.empty(0, np.int64)], [np.empty((0, record.block_size), np.int32)]
        lost = [np.empty(0, np.int64)]
        for (at, count), batch in zip(_parts(record.blocks), batches, strict=True):
            session.counters.spans_missing += len(batch.missing)
            session.counters.spans_corrupt += len(batch.corrupt)
            lost += [batch.missing, batch.corrupt]
            ids = np.zeros((count, record.block_size), np.int32)
            ids[batch.blocks - at] = batch.ids
            session.lens.append(at, ids)
            session.trail.append(ids)
            if session.excerpts is not None:
                session.excerpts.append(ids.reshape(-1))
            stands = np.isin(batch.blocks, raw)
            kept_blocks.append(batch.blocks[stands])
            kept_ids.append(batch.ids[stands])
        gone = np.sort(np.concatenate(lost))
        _collapse_lost(session, np.intersect1d(gone, raw))
        return np.concatenate(kept_blocks), np.concatenate(kept_ids), gone

    def _make(self, gone: Ints) -> None:
        """See which gists and lens keys were lost, and make those of blocks whose spans are not ``gone``."""
        self.lost = [np.flatnonzero(~rows.known) for rows in self.gists]
        tree, keys = self.empty, self.keys if self.empty.config.lens_keys else None
        if not self.gists:
            return
        if keys is not None:
            self.lost[0] = np.union1d(self.lost[0], np.flatnonzero(~keys.known))
        wanted = np.setdiff1d(self.lost[0], gone)
        step = nodes_at_once(self.record.block_size, tree.gist_width)
        for at in range(0, len(wanted), step):
            batch = self.store.read_spans(self.record.session_id, wanted[at : at + step]).result()
            vectors = tree.block_vectors(batch.ids)
            for rows, make in ((self.gists[0], tree.block_gists), (keys, tree.block_keys)):
                if rows is not None and (lost := ~rows.known[batch.blocks]).any():
                    rows.put(batch.blocks[lost], make(vectors if lost.all() else vectors[torch.from_numpy(lost)]))
            # All of a long history takes as long as its ingest did: the lease must not lapse meanwhile.
            self.store.renew({self.record.session_id: self.record.fence})

    def _make_parents(self) -> None:
        """Make the gists that are not known above LOD1 of their children, as far as these are."""
        step = nodes_at_once(self.record.block_size, self.empty.gist_width)
        within = np.arange(self.record.block_size)
        for below, rows in zip(self.gists, self.gists[1:], strict=False):
            lost = np.flatnonzero(~rows.known)
            for at in range(0, len(lost), step):
                children = lost[at : at + step, None] * self.record.block_size + within
                there = below.known[children]
                some = there.any(1)
                vectors = below.values[torch.from_numpy(children[some])]
                rows.put(lost[at : at + step][some], self.empty.parent_gists(vectors, there[some]))


class Reads(Generic[Batch]):
    """What reads bring, in order; some are under way from the beginning, and while others are taken in."""

    def __init__(self, reads: Iterable[Callable[[], Future[Batch]]]) -> None:
        self._reads = iter(reads)
        self._begun: deque[Future[Batch]] = deque()
        for _ in range(AHEAD):
            self._begin()

    def _begin(self) -> None:
        read = next(self._reads, None)
        if read is not None:
            self._begun.append(read())

    def __iter__(self) -> Iterator[Batch]:
        while self._begun:
            batch = self._begun.popleft().result()
            self._begin()
            yield batch


def _counts(record: SessionRecord) -> Iterator[int]:
    """Complete nodes of each level from 1 up."""
    level = 1
    while (rows := record.rows(level)) > 0:
        yield rows
        level += 1


def _parts(count: int) -> Iterator[tuple[int, int]]:
    """(first, number) of rows read at once."""
    for at in range(0, count, ROWS):
        yield at, min(ROWS, count - at)


def _runs(nodes: Ints) -> Iterator[tuple[int, int]]:
    """Neighbouring nodes among ``nodes`` (ascending) as [first, end), short enough for one write."""
    for run in np.split(nodes, np.flatnonzero(np.diff(nodes) > 1) + 1):
        for at in range(0, len(run), WRITTEN):
            part = run[at : at + WRITTEN]
            yield int(part[0]), int(part[-1]) + 1


def _collapse_lost(session: Session, blocks: Ints) -> None:
    wc = session.wc
    lost = [(block * wc.block_size, (block + 1) * wc.block_size) for block in blocks.tolist()]
    kept = without(wc.protection.chosen, lost)
    if kept != wc.protection.chosen:
        logger.warning("session %s: spans that were pinned are lost, and let go", session.id)
        wc.choose(kept)
    must_stand = wc.indices[wc.protected() & (wc.levels == 0)]
    gone = np.intersect1d(blocks, must_stand)
    if len(gone):
        raise StoreError(f"session {session.id}: the spans of blocks {gone.tolist()[:8]} are lost and must stand raw")
    if len(blocks):
        wc.commit(Plan(tuple(Edit("collapse", 1, block) for block in blocks.tolist()), wc.num_tokens))

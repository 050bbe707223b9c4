"""Rebuilding a session's tree and lens index from what a store holds."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mc_core.context.plan import Edit, Plan
from mc_core.errors import StoreError
from mc_core.session.session import Session
from mc_core.store import SessionRecord, SessionStore
from mc_core.tree.tree import MegaContextTree

ROWS = 65_536
"""Rows read at once: bounds the memory of waking a long session."""


def restore_tree(session: Session, record: SessionRecord, store: SessionStore) -> MegaContextTree:
    """The tree of a committed record; the session's lens and working context are brought in step with it.

    A lost or corrupt span is counted and never filled in: if it stood raw, its gist stands from now on. StoreError if
    gists are lost, or spans that must stand raw, since nothing may be invented in their place.
    """
    empty = session.tree
    gists, keys, level = [], None, 1
    while (rows := record.rows(level)) > 0:
        some_gists, some_keys = _read_gists(record.session_id, level, rows, store, empty.dim)
        gists.append(some_gists)
        keys = some_keys if level == 1 else keys
        level += 1
    blocks, ids = _read_spans(session, record, store)
    tree = MegaContextTree.load(
        empty.config,
        empty.gistnet,
        empty.embed,
        gists=gists,
        hot_ids=record.tail,
        num_tokens=record.tokens,
        keys=keys,
        key_net=empty.key_net,
    )
    tree.restore(blocks, ids)
    return tree


def _read_gists(session_id: str, level: int, rows: int, store: SessionStore, dim: int) -> tuple[Tensor, Tensor | None]:
    gists, keys = [], []
    for at in range(0, rows, ROWS):
        batch = store.read_gist_range(session_id, level, at, min(ROWS, rows - at)).result()
        lost = len(batch.missing) + len(batch.corrupt)
        if lost:
            raise StoreError(f"session {session_id}: {lost} gists of level {level} are missing or corrupt")
        gists.append(torch.from_numpy(np.array(batch.gists)).reshape(-1, dim))
        if batch.keys is not None:
            keys.append(torch.from_numpy(np.array(batch.keys)))
    return torch.cat(gists), torch.cat(keys) if keys else None


def _read_spans(
    session: Session, record: SessionRecord, store: SessionStore
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Tell the lens of all spans, a part at a time -> (blocks, ids) of those that stand raw."""
    wc = session.wc
    raw = wc.indices[(wc.levels == 0) & (wc.indices < record.blocks)]
    kept_blocks, kept_ids = [np.empty(0, np.int64)], [np.empty((0, record.block_size), np.int32)]
    lost = [np.empty(0, np.int64)]
    for at in range(0, record.blocks, ROWS):
        count = min(ROWS, record.blocks - at)
        batch = store.read_span_range(record.session_id, at, count).result()
        session.counters.spans_missing += len(batch.missing)
        session.counters.spans_corrupt += len(batch.corrupt)
        lost += [batch.missing, batch.corrupt]
        ids = np.zeros((count, record.block_size), np.int32)
        ids[batch.blocks - at] = batch.ids
        session.lens.append(at, ids)
        stands = np.isin(batch.blocks, raw)
        kept_blocks.append(batch.blocks[stands])
        kept_ids.append(batch.ids[stands])
    _collapse_lost(session, np.intersect1d(np.concatenate(lost), raw))
    return np.concatenate(kept_blocks), np.concatenate(kept_ids)


def _collapse_lost(session: Session, blocks: NDArray[np.int64]) -> None:
    wc = session.wc
    must_stand = wc.indices[wc.protected() & (wc.levels == 0)]
    gone = np.intersect1d(blocks, must_stand)
    if len(gone):
        raise StoreError(f"session {session.id}: the spans of blocks {gone.tolist()[:8]} are lost and must stand raw")
    if len(blocks):
        wc.commit(Plan(tuple(Edit("collapse", 1, block) for block in blocks.tolist()), wc.num_tokens))

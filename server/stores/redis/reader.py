"""Reads from Redis: rows in pages, pipelined."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from mc_core.errors import ConfigError, StoreError
from mc_core.store import GistBatch, Indices, SpanBatch
from server.stores.codec import RowFormat, Rows
from server.stores.redis.link import Command, Reply
from server.stores.redis.replies import info_of, value_of

Send = Callable[[Sequence[Command]], Awaitable[Sequence[Any]]]
PAGE = 1024
"""Rows that one command reads at most: Redis serves others between two of them."""
PAGES = 16
"""Commands in one round trip: bounds the bytes under way."""
TRIES = 3


@dataclass(frozen=True)
class Source:
    """A session to read; ``lease`` is the token of the lease by which staged rows are seen, or empty."""

    send: Send
    session_id: str
    lease: str


async def read_spans(source: Source, wanted: Indices | range) -> SpanBatch:
    """Spans of some blocks (ascending, distinct) or, in bulk, of a range of blocks."""
    table, found, missing, corrupt = await _read(source, 0, wanted)
    return SpanBatch(found, table["ids"].astype(np.int32), missing, corrupt)


async def read_gists(source: Source, level: int, wanted: range) -> GistBatch:
    """Gists of a range of nodes."""
    if level < 1:
        raise ConfigError(f"level of a gist must be at least 1, got {level}")
    table, found, missing, corrupt = await _read(source, level, wanted)
    native = table.dtype["gist"].base.newbyteorder("=")
    keys = table["keys"].astype(native) if "keys" in (table.dtype.names or ()) else None
    return GistBatch(found, table["gist"].astype(native), keys, missing, corrupt)


async def _read(source: Source, level: int, wanted: Indices | range) -> tuple[Rows, Indices, Indices, Indices]:
    """(sound rows, their indices, missing indices, corrupt indices) among the rows that may be seen."""
    for _ in range(TRIES):
        replies = await _pages(source, level, wanted)
        if len({version for version, *_ in replies}) == 1:
            break
    else:
        raise StoreError(f"session {source.session_id!r} changed while it was read: another owner writes it")
    _, values, limit, _ = replies[0]
    if isinstance(wanted, range):
        wanted = np.arange(wanted.start, wanted.stop, dtype=np.int64)
    visible = wanted[(wanted >= 0) & (wanted < int(limit))]
    return _sorted(RowFormat.of(info_of(values), level), visible, b"".join(data for *_, data in replies), wanted)


async def _pages(source: Source, level: int, wanted: Indices | range) -> list[Reply]:
    """[version, record, rows that the level has, rows as bytes] for each page, up to the last row that there is."""
    pages = _range_runs(wanted) if isinstance(wanted, range) else _some_runs(wanted)
    replies: list[Reply] = []
    for at in range(0, len(pages), PAGES):
        runs = pages[at : at + PAGES]
        sent = await source.send([("rows", "", "", source.session_id, source.lease, level, *run) for run in runs])
        replies.extend(value_of(reply, source.session_id) for reply in sent)
        if runs[-1][0] >= int(replies[-1][2]):
            break
    return replies


def _range_runs(wanted: range) -> list[tuple[int, ...]]:
    edges = [wanted.start, *range((wanted.start // PAGE + 1) * PAGE, wanted.stop, PAGE), wanted.stop]
    return [(first, last - first) for first, last in pairwise(edges)]


def _some_runs(wanted: Indices) -> list[tuple[int, ...]]:
    """Neighbours are read as one run."""
    wanted = wanted[wanted >= 0]
    if not len(wanted):
        return [(0, 0)]
    firsts = wanted[np.flatnonzero(np.diff(wanted, prepend=-2) != 1)]
    counts = np.diff(np.searchsorted(wanted, firsts), append=len(wanted))
    pairs = np.stack([firsts, counts], 1)
    return [tuple(pairs[at : at + PAGE].ravel().tolist()) for at in range(0, len(pairs), PAGE)]


def _sorted(form: RowFormat, indices: Indices, data: bytes, wanted: Indices) -> tuple[Rows, Indices, Indices, Indices]:
    """A row of zeros was never written, or is lost with its page."""
    width = form.dtype.itemsize
    rows = [data[start : start + width] for start in range(0, len(data), width)]
    table, sound = form.decode(indices, rows)
    if sound.all():  # no copy of a long history in the common case
        return table, indices, np.setdiff1d(wanted, indices, assume_unique=True), indices[:0]
    zeros = bytes(width)
    there = np.fromiter((row != zeros for row in rows), np.bool_, count=len(rows))
    missing = np.setdiff1d(wanted, indices[there], assume_unique=True)
    return table[sound], indices[sound], missing, indices[there & ~sound]

"""New sessions that begin as a part of a committed one, whose rows they share."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mc_core.errors import SpanMissingError
from mc_core.session.fork import fork_record
from mc_core.store import SessionRecord
from server.futures import settled
from server.sessions.host import SessionHost
from server.sessions.names import new_id

Pins = Sequence[tuple[int, int]]


async def fork(host: SessionHost, parent: SessionRecord, ids: NDArray[np.int32], pins: Pins) -> str | None:
    """A new implicit session of the first tokens ``ids`` of ``parent`` -> its id; None if the other one changed
    meanwhile. SessionMismatchError if the server can't read these."""
    tail = ids[len(ids) // parent.block_size * parent.block_size :]
    return await _fork(host, parent, len(ids), tail, pins, implicit=True)


async def fork_at(host: SessionHost, parent: SessionRecord, position: int, *, implicit: bool) -> str | None:
    """A new session of the first ``position`` tokens of ``parent``, with its pins; else as ``fork``. Of no tokens it
    can be made whatever they are written in."""
    if not position:
        return (await host.create(parent.tenant, metadata={}, implicit=implicit)).id
    block, inside = divmod(position, parent.block_size)
    tail = parent.tail
    if inside and block < parent.blocks:
        batch = await settled(host.store.read_span_range(parent.session_id, block, 1))
        if not len(batch.ids):
            raise SpanMissingError(f"the store lost block {block} of session {parent.session_id}")
        tail = batch.ids[0]
    pins = [(start, min(end, position)) for start, end in parent.state["context"]["pins"] if start < position]
    return await _fork(host, parent, position, tail[:inside], pins, implicit=implicit)


async def _fork(
    host: SessionHost, parent: SessionRecord, tokens: int, tail: NDArray[np.int32], pins: Pins, *, implicit: bool
) -> str | None:
    host.factory.check(parent)  # a branch that can't be read would stay, and nobody would know of it
    tenant = parent.tenant
    session = host.factory.create(new_id(), tenant, model=host.model, implicit=implicit)
    try:
        await settled(host.store.fork(parent.session_id, tenant, fork_record(session, parent, tokens, tail, pins)))
        now = await host.info(parent.session_id, tenant)
    except asyncio.CancelledError:
        host.forsake(session.id, tenant)
        raise
    if implicit:
        host.expiry.made_implicit(tenant)
    if now.sequence != parent.sequence:
        await host.delete(session.id, tenant)
        return None
    return session.id

"""Text on its way into a session's history: tokenized ahead of the engine, taken in slice by slice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mc_core.context.sources import UNTITLED, About
from mc_core.notes import Note
from mc_core.session.session import IngestCut
from server.errors import ApiError
from server.futures import settled
from server.ingest.text_pieces import Piece, batches, encode_pieces
from server.sessions.slots import Lease
from server.state import ServerState
from server.turns.message_notes import Told, list_document

MARK = "\ufeff"
"""The byte order mark, in front of many a UTF-8 file: it says how to read the text and is none of it."""
SLICE = 16_384
"""Tokens that the engine takes in at once: an ingest that is stopped waits for no more than that."""
T = TypeVar("T")


class Ingest:
    """One ingest of a session that is held. All of it counts or nothing; ``in_parts`` each batch counts at once.

    offset: bytes of the text that an ingest in parts has brought in before; ApiError 409 if it has not. about: what the
    text is.
    """

    def __init__(
        self, state: ServerState, lease: Lease, about: About = UNTITLED, *, in_parts: bool = False, offset: int = 0
    ) -> None:
        self.about = about
        self.session, self._lease = lease.session, lease
        self._engine, self._store, self._tokenizer = state.engine, state.store, state.bundle.tokenizer
        self._in_parts, self._start, self._fresh = in_parts, offset, self.session.tokens == 0
        self._before, self._bytes = self.session.committed_tokens, offset
        known = self.session.ingest_offset
        if offset and offset != known:
            end = f"with byte {known} of an ingest in parts" if known else "with no ingest in parts"
            raise ApiError(409, f"the history ends {end}, so nothing goes on at byte {offset}", code="ingest_offset")

    @property
    def added(self) -> int:
        """Tokens that count by now."""
        return self.session.committed_tokens - self._before

    @property
    def taken_in(self) -> int:
        """Tokens that the history has of it, whether they count or not."""
        return max(0, self.session.tokens - self._before)

    def progress(self) -> dict[str, Any]:
        """How far it is: ``tokens`` and ``bytes`` taken in, and the ``offset`` from which it could go on for good."""
        return {
            "active": True,
            "tokens": self.taken_in,
            "bytes": self._bytes,
            "offset": self.session.ingest_offset,
        }

    async def take_in(self, texts: AsyncIterator[str], notes: Callable[[], Sequence[Note]] = lambda: ()) -> None:
        """Take in all of the text; ``notes`` are stored with its end. Whatever stops it, the session is then as it was
        committed last."""
        self._lease.shows(self.progress)
        self._told = await Told.of(self._store, self.session)
        self._listed = self._start > 0 and self._told.document and self._told.last.end == self._before
        try:
            async with aclosing(_ahead(self._encoded(texts))) as encoded:
                async for ids, size in encoded:
                    await self._append(ids)
                    self._bytes += size
                    if self._in_parts:
                        await self._commit_part()
            await settled(self._engine.call(self._list))
            await settled(self._engine.commit(self.session, notes()))
        except BaseException:
            await settled(self._engine.rollback(self.session))
            raise

    async def _encoded(self, texts: AsyncIterator[str]) -> AsyncGenerator[tuple[NDArray[np.int32], int], None]:
        """Batches of the text as (token ids, bytes); the next text may be read where the last batch ends."""
        if not self._start:
            texts = self._without_mark(texts)
        async for batch in batches(texts, self._tokenizer):
            yield await asyncio.to_thread(self._encode, batch)

    async def _without_mark(self, texts: AsyncIterator[str]) -> AsyncIterator[str]:
        first = True
        async for text in texts:
            if first and text.startswith(MARK):
                self._bytes += len(MARK.encode())
                text = text.removeprefix(MARK)
            first = False
            yield text

    def _encode(self, batch: list[Piece]) -> tuple[NDArray[np.int32], int]:
        size = sum(len(piece.text.encode("utf-8", "surrogatepass")) for piece in batch)
        return encode_pieces(self._tokenizer, batch, self._fresh), size

    async def _append(self, ids: NDArray[np.int32]) -> None:
        if self.session.tokens == 0:
            ids = np.concatenate([self._tokenizer.prefix_ids, ids])
        for at in range(0, len(ids), SLICE):
            await settled(self._engine.ingest(self.session, ids[at : at + SLICE], self.about))

    def _list(self) -> None:
        """Have the text, or what there is of it by now, among the session's messages."""
        if self.session.tokens > self._before:
            self._told = list_document(self.session, self._told, self._before, self.about, self._listed)
            self._listed = True

    async def _commit_part(self) -> None:
        before = self.session.ingest_cut
        self.session.ingest_cut = IngestCut(self._bytes, self.session.tokens)
        try:
            await settled(self._engine.call(self._list))
            await settled(self._engine.commit(self.session))
        finally:
            if self.session.committed_tokens < self.session.tokens:
                self.session.ingest_cut = before


async def _ahead(source: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """The same items; the next one is made while the last one is used."""
    coming = asyncio.create_task(_next(source))
    try:
        while item := await coming:
            coming = asyncio.create_task(_next(source))
            yield item[0]
    finally:
        coming.cancel()
        await asyncio.gather(coming, return_exceptions=True)
        await source.aclose()


async def _next(source: AsyncGenerator[T, None]) -> tuple[T] | None:
    async for item in source:
        return (item,)
    return None

"""What is read from Redis: rows, records, notes and lists; see store.py."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from urllib.parse import unquote

import numpy as np

from mc_core.errors import StoreError
from mc_core.notes import Note, NotePage
from mc_core.store import (
    GistBatch,
    Indices,
    PrefixMatch,
    SessionPage,
    SessionRecord,
    SpanBatch,
    decode_cursor,
)
from server.stores import listing
from server.stores.arguments import check_limit, row_range
from server.stores.redis import reader
from server.stores.redis.calls import Calls
from server.stores.redis.notes import note_of, page_command, page_of
from server.stores.redis.replies import derived_fields, info_of, key_part, record_of, value_of


class Reads:
    """The half of a ``SessionStore`` (see there for what each method promises) that changes nothing."""

    _calls: Calls

    def read_spans(self, session_id: str, blocks: Indices) -> Future[SpanBatch]:
        wanted = np.unique(np.asarray(blocks, np.int64))
        return self._calls.read(lambda send: reader.read_spans(self._source(send, session_id), wanted), session_id)

    def read_span_range(self, session_id: str, first: int, count: int) -> Future[SpanBatch]:
        async def run(send: reader.Send) -> SpanBatch:
            return await reader.read_spans(self._source(send, session_id), row_range(first, count))

        return self._calls.read(run, session_id)

    def read_gist_range(self, session_id: str, level: int, first: int, count: int) -> Future[GistBatch]:
        async def run(send: reader.Send) -> GistBatch:
            return await reader.read_gists(self._source(send, session_id), level, row_range(first, count))

        return self._calls.read(run, session_id)

    def record(self, session_id: str, tenant: str) -> Future[SessionRecord]:
        async def run(send: reader.Send) -> SessionRecord:
            replies = await send([("record", "", "", session_id, key_part(tenant))])
            return record_of(value_of(replies[0], session_id)[0])

        return self._calls.read(run, session_id)

    def note(self, session_id: str, tenant: str, key: str) -> Future[Note | None]:
        async def run(send: reader.Send) -> Note | None:
            found = value_of((await send([("note", "", "", session_id, key_part(tenant), key)]))[0], session_id)
            return note_of(found[0] if found else None)

        return self._calls.read(run, session_id)

    def notes(
        self,
        session_id: str,
        tenant: str,
        *,
        prefix: str = "",
        after: str | None = None,
        limit: int = 100,
        newest_first: bool = False,
    ) -> Future[NotePage]:
        async def run(send: reader.Send) -> NotePage:
            command = page_command(session_id, tenant, prefix, after, limit, newest_first)
            return page_of(value_of((await send([command]))[0], session_id), limit)

        return self._calls.read(run, session_id)

    def find_note(self, tenant: str, key: str) -> Future[tuple[str, Note] | None]:
        async def run(send: reader.Send) -> tuple[str, Note] | None:
            found = value_of((await send([("find_note", "", "", key_part(tenant), key)]))[0], "")
            note = note_of(found[0][1]) if found and found[0] and len(found[0]) > 1 else None
            return (found[0][0].decode(), note) if note else None

        return self._calls.read(run, None)

    def list(
        self, tenant: str, limit: int = 20, after: str | None = None, implicit: bool | None = None
    ) -> Future[SessionPage]:
        kind = "" if implicit is None else "implicit" if implicit else "explicit"

        async def run(send: reader.Send) -> SessionPage:
            check_limit(limit)
            created, session_id = decode_cursor(after) if after is not None else ("", "")
            command = ("list", "", "", key_part(tenant), kind, limit + 1, _exact(created), session_id)
            return listing.page_of(value_of((await send([command]))[0], ""), limit, info_of)

        return self._calls.read(run, None)

    def find_prefix(self, tenant: str, model: str, hashes: Sequence[str]) -> Future[PrefixMatch | None]:
        keys = tuple(hashes)

        async def run(send: reader.Send) -> PrefixMatch | None:
            replies = await send([("find_prefix", "", "", key_part(tenant), key_part(model), *keys)])
            found = value_of(replies[0], "")
            if not found:
                return None
            position, _, session_id = found[1].decode().partition(" ")
            return PrefixMatch(session_id, keys[found[0]], int(position))

        return self._calls.read(run, None)

    def asked(self, owner: str) -> Future[tuple[str, ...]]:
        async def run(send: reader.Send) -> tuple[str, ...]:
            return tuple(name.decode() for name in value_of((await send([("asked", "", "", owner)]))[0], ""))

        return self._calls.read(run, None)

    def foreign(self, tokenizer: str, limit: int) -> Future[int]:
        """In steps, between which Redis serves others."""

        async def run(send: reader.Send) -> int:
            cursor, others = "0", 0
            for _ in range(0, limit, 1000):
                found = value_of((await send([("foreign", "", "", tokenizer, cursor)]))[0], "")
                cursor, others = found[0].decode(), others + found[1]
                if cursor == "0":
                    break
            return others

        return self._calls.read(run, None)

    def everything(self) -> Future[Sequence[tuple[str, str]]]:
        """(tenant, id) of all sessions, for who checks the whole store."""

        async def run(send: reader.Send) -> Sequence[tuple[str, str]]:
            flat = value_of((await send([("everything", "", "")]))[0], "")[0]
            return [
                (unquote(tenant.decode()), name.decode()) for name, tenant in zip(flat[::2], flat[1::2], strict=True)
            ]

        return self._calls.read(run, None)

    def integrity(self) -> Future[Sequence[str]]:
        """What is wrong with fields that the store keeps for itself; Redis checks its files when it starts."""

        async def run(send: reader.Send) -> Sequence[str]:
            found = []
            flat = value_of((await send([("everything", "", "")]))[0], "")[0]
            for name in (one.decode() for one in flat[::2]):
                try:
                    wrong = derived_fields(value_of((await send([("record", "", "", name, "")]))[0], name)[0])
                except (KeyError, ValueError, StoreError, LookupError):
                    wrong = ["record"]
                found += [f"session {name}: the field {field} is not as it was written" for field in wrong]
            return found

        return self._calls.read(run, None)

    def _source(self, send: reader.Send, session_id: str) -> reader.Source:
        return reader.Source(send, session_id, self._calls.leases.token(session_id))


def _exact(number: float | str) -> str:
    return number if isinstance(number, str) else repr(number)

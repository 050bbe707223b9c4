"""What is done to conversations, which are sessions, and to their items, which are parts of messages."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fastapi import Response
from fastapi.responses import JSONResponse

from mc_core.notes import PAGE_BYTES, Note
from mc_core.session.session import Session
from server.apis.conversations.format import items_in, items_of, parts_in
from server.apis.prelude import check_chat
from server.apis.responses.items_protocol import Item, listed, messages_of
from server.apis.responses.lists import Order, no_such_place, shown
from server.apis.responses.lists_protocol import ItemList
from server.apis.responses.parts import parts_given
from server.condition import Condition, etag
from server.errors import ApiError, bad_request, not_found
from server.futures import settled
from server.once.call import Call
from server.state import ServerState
from server.turns.appending import append
from server.turns.history import History
from server.turns.message_notes import Listed, listed_from, newest
from server.turns.parts import Named, stem_key

BY_MESSAGE = re.compile(r"(?:msg|fc|fco)_([0-9a-f]{8})[0-9a-f]{16}(?:c[0-9]{1,9})?")
"""An item that is called after its message, whose number it tells."""
BY_STEM = re.compile(r"(?:msg|fc|fco)_([0-9a-f]{32})[io][0-9]{1,9}")
"""One that has its name of the request that it came with."""

NOT_LAST = (
    "only the last item of a conversation can be deleted, and only if nothing stands behind it: a history is never"
    " changed in the middle. Delete what follows first, from the end, or fork the session in front of the item"
)


class Conversations:
    """The conversations of one tenant."""

    def __init__(self, state: ServerState, tenant: str) -> None:
        self.state, self.tenant = state, tenant

    async def create(self, items: Sequence[Item], metadata: dict[str, str]) -> Session:
        """A new session; the items are read at once."""
        host = self.state.host
        if items:
            self._check()
        session = await host.create(self.tenant, metadata=dict(metadata), kind="conv")
        if items:
            try:
                async with host.use(session.id, self.tenant) as lease:
                    await self._append(lease.session, items)
            except BaseException:
                await host.delete(session.id, self.tenant)
                raise
        return session

    async def append(self, id: str, items: Sequence[Item], expected: Condition, call: Call) -> Response:
        """Items behind all others, without a reply -> these."""
        self._check()
        async with self.state.host.use(id, self.tenant, expected) as lease:
            await call.check_new()
            body = await self._append(lease.session, items, call)
            call.count()
            return JSONResponse(body, headers={"X-Session-ID": id, "ETag": etag(lease.session.sequence)})

    async def page(self, id: str, limit: int, order: Order, after: str | None) -> ItemList:
        """At most ``limit`` items behind the one called ``after``; fewer where they are long."""
        return await self.state.host.steady(id, self.tenant, lambda: self._page(id, limit, order, after))

    async def item(self, id: str, item_id: str) -> dict[str, Any]:
        """One of them; ApiError 404 if there is none."""
        return await self.state.host.steady(id, self.tenant, lambda: self._item(id, item_id))

    async def _page(self, id: str, limit: int, order: Order, after: str | None) -> ItemList:
        store, number, skipped = self.state.store, 0, after
        if after is not None:
            place = await self._find(id, after)
            if place is None:
                raise no_such_place()
            number = place.number
        elif order == "desc":
            last = await newest(store, id, self.tenant)
            number = -1 if last is None else last.number
        found: list[dict[str, Any]] = []
        size = 0
        async for message in listed_from(store, id, self.tenant, number, 1 if order == "asc" else -1):
            items = items_in(message)[:: 1 if order == "asc" else -1]
            if skipped is not None:
                ids = [item["id"] for item in items]
                items, skipped = items[ids.index(skipped) + 1 if skipped in ids else 0 :], None
            for item in items:
                if len(found) == limit or size > PAGE_BYTES:
                    return shown(found, has_more=True)
                found.append(item)
            size += len(message.content or "")
        return shown(found, has_more=False)

    async def _item(self, id: str, item_id: str) -> dict[str, Any]:
        message = await self._find(id, item_id)
        if message is None:
            raise not_found(f"conversation {id[:200]!r} has no item {item_id[:200]!r}", "item_not_found")
        return next(item for item in items_in(message) if item["id"] == item_id)

    async def delete(self, id: str, item_id: str, expected: Condition) -> Session:
        """Take the last item back; ApiError 400 for one that others follow."""
        async with self.state.host.use(id, self.tenant, expected) as lease:
            session = lease.session
            await self._item(id, item_id)
            last = await newest(self.state.store, id, self.tenant)
            parts = () if last is None or last.role == "document" else parts_in(last)
            if last is None or not parts or parts[-1].id != item_id or last.place.end != session.tokens:
                raise bad_request(NOT_LAST, "item_id", "item_not_last")
            await self._take_back(session, last)
            return session

    # ----------------------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        check_chat(self.state, "its conversations hold no items")

    async def _append(self, session: Session, items: Sequence[Item], call: Call | None = None) -> dict[str, Any]:
        """What is told of the items when they are stored."""
        stem, messages = secrets.token_hex(16), messages_of(items)
        parts = parts_given(listed(items, stem))
        told = [item for message, names in zip(messages, parts, strict=True) for item in items_of(message, names)]
        body = shown(told, has_more=False).model_dump(mode="json")

        def notes() -> Sequence[Note]:
            return () if call is None else call.added(session, body)

        try:
            await append(self.state.turns, session, messages, Named(stem, parts), notes=notes)
        except ApiError as error:
            raise replace(error, param="items") if error.param == "messages" else error from error
        return body

    async def _find(self, id: str, item_id: str) -> Listed | None:
        """The message that an item is a part of."""
        store, stem = self.state.store, None
        if (named := BY_MESSAGE.fullmatch(item_id)) is not None:
            number = int(named[1], 16)
        elif (named := BY_STEM.fullmatch(item_id)) is not None:
            stem = named[1]
            note = await settled(store.note(id, self.tenant, stem_key(stem)))
            number = -1 if note is None else int(note.value)
        else:
            number = -1
        async for message in listed_from(store, id, self.tenant, number):
            parts = () if message.role == "document" else parts_in(message)
            if any(part.id == item_id for part in parts):
                return message
            if stem is None or (message.place.parts and stem not in message.place.parts[0].id):
                return None
        return None

    async def _take_back(self, session: Session, last: Listed) -> None:
        """Without the last of the items that a message is told as."""
        history, parts = History(self.state.host, self.state.engine, session), parts_in(last)
        if len(parts) == 1:
            await history.take_back(last)
            return
        if last.content is None:
            raise bad_request("the words of this item's message are too long for it to be written anew", "item_id")
        message = last.message()
        if parts[-1].id.startswith("msg_"):
            message = replace(message, content=message.content[: len(message.content) - parts[-1].size])
        else:
            message = replace(message, tool_calls=message.tool_calls[:-1])
        spot = await history.before(last)
        await append(self.state.turns, session, [message], Named(None, [parts[:-1]]), spot)

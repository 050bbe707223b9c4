"""The messages of a session as its store keeps them: a note each, at the place where the message ends."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

from mc_core.context.sources import About
from mc_core.models.tokenizer import without_surrogates
from mc_core.notes import MAX_NOTE, Note
from mc_core.session.session import Session
from mc_core.store import SessionStore
from server.futures import settled
from server.templates.messages import Message
from server.tools.tool import ToolCall
from server.turns.parts import Part, Parts
from server.turns.prefixes import hash_chain

PREFIX = "msg:"
READ_AT_ONCE = 256
READ_BY_NUMBER = 16


@dataclass(frozen=True)
class Place:
    """Where a listed message stands: tokens [start, end) of the history. digest: of all messages up to this one, ""
    if that is not known. whole: whether the list tells all of the history up to here. parts: the items that it is told
    as where items are listed; () where nobody gave them names."""

    start: int
    end: int
    whole: bool
    digest: str = ""
    id: str = ""
    created: int = 0
    parts: Parts = ()

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Place:
        """As JSON has it."""
        return cls(**{**stored, "parts": tuple(Part(*part) for part in stored.get("parts", ()))})

    def json(self) -> dict[str, Any]:
        fields = dict(vars(self))
        parts = fields.pop("parts")
        return fields | {"parts": [[part.id, part.size, part.cut] for part in parts]} if parts else fields

    def with_id(self, number: int) -> Place:
        """The same with an id of its own."""
        return replace(self, id=f"msg_{number:08x}{secrets.token_hex(8)}", created=int(time.time()))


@dataclass(frozen=True)
class Told:
    """What a session remembers of its list, stored with its conversation. next: number of the message to come. last:
    place of the last one. window: of those that are open (see ``server/turns/conversation.py``), None for one that is
    not in the list. document: whether the last one is an ingested text."""

    next: int = 0
    last: Place = field(default_factory=lambda: Place(0, 0, True))
    window: tuple[Place | None, ...] = ()
    document: bool = False

    @classmethod
    async def of(cls, store: SessionStore, session: Session) -> Told:
        """As the session knows it, or else as its store does: after a rewind or a fork, or before there were lists."""
        stored = session.chat.get("told")
        if stored is not None and stored["last"]["end"] <= session.tokens:
            window = tuple(Place.of(place) if place else None for place in stored["window"])
            return cls(stored["next"], Place.of(stored["last"]), window, stored["document"])
        if not session.tokens and not session.prefixes:
            # Nothing was ever said in it: no need to wait for a store that may be away.
            return cls()
        return cls.behind(await newest(store, session.id, session.tenant))

    @classmethod
    def behind(cls, last: Listed | None) -> Told:
        """Behind a listed message, with none open."""
        return cls() if last is None else cls(last.number + 1, last.place, (), last.role == "document")

    def keep(self, session: Session) -> None:
        """To be stored with the session; on the engine's thread."""
        window = [place.json() if place else None for place in self.window]
        told = {"next": self.next, "last": self.last.json(), "window": window, "document": self.document}
        session.chat = {**session.chat, "told": told}


def with_gap(chat: Mapping[str, Any]) -> dict[str, Any]:
    """The stored conversation of a session whose list lost a message: what comes is told behind a gap."""
    if (told := chat.get("told")) is None:
        return dict(chat)
    window = [place and {**place, "whole": False} for place in told.get("window", ())]
    return {**chat, "told": {**told, "last": {**told["last"], "whole": False}, "window": window}}


def parts_open(chat: Mapping[str, Any]) -> list[Parts]:
    """What the open messages of a conversation, as its session stores it, are called as items."""
    count, places = len(chat.get("messages") or ()), (chat.get("told") or {}).get("window", ())
    known = [Place.of(place).parts if place else () for place in places][-count:] if count else []
    return [()] * (count - len(known)) + known


@dataclass(frozen=True)
class Listed:
    """A message of the list. content: None for an ingested text, and where it is too long for a note: ``/text`` has it.
    title, kind: of an ingested text."""

    number: int
    place: Place
    role: str
    content: str | None
    name: str | None = None
    tool_calls: tuple[dict[str, Any], ...] = ()
    tool_call_id: str | None = None
    title: str | None = None
    kind: str | None = None

    @classmethod
    def of(cls, number: int, place: Place, message: Message) -> Listed:
        calls = tuple(
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        )
        told = _sound([message.content, message.name, calls, message.tool_call_id])
        return cls(number, place, message.role, *told)

    @classmethod
    def document(cls, number: int, place: Place, about: About) -> Listed:
        return cls(number, place, "document", None, title=about.title, kind=about.kind)

    def same(self, message: Message) -> bool:
        """Whether it says the same."""
        return self == Listed.of(self.number, self.place, message)

    def note(self) -> Note:
        """For the store."""
        fields = {**vars(self), "place": self.place.json()}
        value = json.dumps(fields).encode()
        if len(value) > MAX_NOTE:
            value = json.dumps({**fields, "content": None}).encode()
        return Note(_key(self.number), self.place.end, value)

    def message(self) -> Message:
        """As it was given or written; without its words, where these are too long for a note."""
        called = ((call["id"], call["function"]) for call in self.tool_calls)
        calls = tuple(ToolCall(id, function["name"], function["arguments"]) for id, function in called)
        return Message(self.role, self.content or "", self.name, calls, self.tool_call_id)

    @classmethod
    def read(cls, note: Note) -> Listed:
        fields = _sound(json.loads(note.value))
        fields["place"], fields["tool_calls"] = Place.of(fields["place"]), tuple(fields["tool_calls"])
        return cls(**fields)


def _sound(value: Any) -> Any:
    """The same as the model reads it: half a surrogate pair, which no answer can hold, is U+FFFD."""
    match value:
        case str():
            return without_surrogates(value)
        case dict():
            return {name: _sound(one) for name, one in value.items()}
        case list() | tuple():
            return type(value)(map(_sound, value))
    return value


def list_system(session: Session, system: Message, tokens: int) -> None:
    """List the system message of an empty session, which is about to be its first ``tokens`` tokens."""
    place = Place(0, tokens, True, hash_chain([system])[0]).with_id(0)
    session.note(Listed.of(0, place, system).note())
    Told(1, place, (place,)).keep(session)


def list_document(session: Session, told: Told, start: int, about: About, goes_on: bool) -> Told:
    """List an ingested text, of which the history holds [start, its end); on the engine's thread.

    goes_on: the last message of the list is the beginning of the same text.
    """
    last = told.last
    number = told.next - 1 if goes_on else told.next
    whole = last.whole and (goes_on or last.end == start)
    place = Place(last.start if goes_on else start, session.tokens, whole)
    place = replace(place, id=last.id, created=last.created) if goes_on else place.with_id(number)
    session.note(Listed.document(number, place, about).note())
    told = Told(number + 1, place, (), True)
    told.keep(session)
    return told


def _key(number: int) -> str:
    return f"{PREFIX}{number:010d}"


def tells_all(page: Sequence[Listed], last: Listed | None, tokens: int) -> bool:
    """Whether a list tells all of a history of ``tokens``, as far as a page of it and its last message show."""
    if last is None:
        return tokens == 0
    numbers = sorted(one.number for one in page)
    return all(b == a + 1 for a, b in pairwise(numbers)) and last.place.whole and last.place.end == tokens


async def newest(store: SessionStore, session_id: str, tenant: str) -> Listed | None:
    """The last message of a list."""
    async for listed in listed_messages(store, session_id, tenant, newest_first=True, at_once=1):
        return listed
    return None


async def listed_messages(
    store: SessionStore, session_id: str, tenant: str, *, newest_first: bool = False, at_once: int = READ_AT_ONCE
) -> AsyncIterator[Listed]:
    """All of a list."""
    after = None
    while True:
        page = await settled(
            store.notes(session_id, tenant, prefix=PREFIX, after=after, limit=at_once, newest_first=newest_first)
        )
        for note in page.notes:
            yield Listed.read(note)
        after = page.next
        if after is None:
            return


async def listed_from(
    store: SessionStore, session_id: str, tenant: str, number: int, step: Literal[1, -1] = 1
) -> AsyncIterator[Listed]:
    """Those of a list from this number on, or down to the first one."""
    while number >= 0:
        end = max(number + step * READ_BY_NUMBER, -1)
        reads = [store.note(session_id, tenant, _key(at)) for at in range(number, end, step)]
        for note in [await settled(one) for one in reads]:
            if note is not None:
                yield Listed.read(note)
            elif step == 1:
                return
        number = end


async def find_message(store: SessionStore, session_id: str, tenant: str, message_id: str) -> Listed | None:
    """The message of this id, which tells its number."""
    try:
        number = int(message_id.removeprefix("msg_")[:8], 16)
    except ValueError:
        return None
    note = await settled(store.note(session_id, tenant, _key(number)))
    listed = Listed.read(note) if note is not None else None
    return listed if listed is not None and listed.place.id == message_id else None


async def drop_from(store: SessionStore, session: Session, number: int) -> None:
    """Take the messages from this number on out of the list of a session that nobody else knows yet."""
    async for listed in listed_messages(store, session.id, session.tenant):
        if listed.number >= number:
            await settled(store.delete_note(session.id, session.tenant, _key(listed.number)))

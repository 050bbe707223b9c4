"""What a turn adds to the list of a session's messages, and what it tells anew of those that it writes anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeGuard

import numpy as np

from mc_core.models.tokenizer import Ids
from mc_core.session.session import Session
from mc_core.store import SessionStore
from server.templates.chat_template import ChatTemplate, Message
from server.turns.conversation import Reading, Window
from server.turns.message_notes import Listed, Place, Told, drop_from, listed_messages
from server.turns.parts import Named, Parts
from server.turns.places import message_ends
from server.turns.prefixes import hash_chain


class Listing:
    """The messages that a turn renders, those of the window and new ones, as far as they are in the list already."""

    def __init__(
        self, session: Session, told: Told, messages: Sequence[Message], places: Sequence[Place], new: int
    ) -> None:
        """places: of the first of the messages, which are the last of the list. new: how many messages are new."""
        self._session, self._messages, self._new = session, messages, new
        self._places: list[Place | None] = [*places, *[None] * (len(messages) - len(places))]
        self._number = told.next - len(places)
        # What the list holds in front of these messages ends here.
        self._before = Place(0, places[0].start, places[0].whole) if places else told.last
        self._start, self._ends = 0, [0] * len(messages)

    @classmethod
    async def of(
        cls, store: SessionStore, session: Session, window: Window, new: Sequence[Message], whole: bool
    ) -> Listing:
        """whole: the history is a beginning of ``new``, and so the list is to be."""
        if whole:
            kept = await _common(store, session, new)
            return cls(session, Told.behind(kept[-1] if kept else None), new, [one.place for one in kept], len(new))
        told, count = await Told.of(store, session), len(window.messages)
        if len(told.window) < count:  # from before there were lists
            return cls(session, told, [*window.messages, *new], (), len(new))
        pairs = zip(window.messages, told.window[len(told.window) - count :], strict=True)
        known = [(message, place) for message, place in pairs if place is not None]
        listed = [*(message for message, _ in known), *new]
        return cls(session, told, listed, [place for _, place in known], len(new))

    def find(self, template: ChatTemplate, window: Window, held: Ids, went: Reading) -> None:
        """Look for where the messages end in the history, which holds the prompt by then."""
        ids, self._start = np.concatenate([held[: went.keep - window.start], went.ids]), window.start
        known = [
            (place.start - window.start, place.end - window.start) if _stays(place, went.keep) else None
            for place in self._places
        ]
        self._ends = [window.start + end for end in message_ends(template, ids, self._messages, known)]

    def note(self, went: Reading, reply: Message | None, before: str, named: Named | None = None) -> None:
        """Note what the turn adds, with its session's conversation; on the engine's thread, when all of it is there.

        reply: None for messages that wait for one. before: digest of all messages before the new ones. named: how those
        who see items call what is new.
        """
        session, places, told = self._session, [self._before], [] if reply is None else [reply]
        messages, ends = [*self._messages, *told], [*self._ends[: len(self._messages) - 1 + len(told)], session.tokens]
        known = len(self._messages) - self._new
        digests = [""] * known + hash_chain(messages[known:], before)
        parts, opened = self._parts(named, len(told)), _aligned([*went.window.messages, *told], messages)
        # The next turn cuts no further than where the open messages begin, and so loses none in front of them.
        shut = min((at for at in opened if at is not None), default=len(messages))
        ends[:shut] = [min(end, went.window.start) for end in ends[:shut]]
        for i, (message, old) in enumerate(zip(messages, [*self._places, *[None] * len(told)], strict=True)):
            if old is None or not _stays(old, went.keep):
                start = places[-1].end if i else max(places[-1].end, self._start)
                whole = places[-1].whole and places[-1].end == start
                place = Place(start, max(start, ends[i]), whole, old.digest if old else digests[i])
                number = self._number + i
                if old is not None:
                    old = replace(place, id=old.id, created=old.created, parts=old.parts)
                else:
                    old = replace(place.with_id(number), parts=parts[i])
                session.note(Listed.of(number, old, message).note())
            places.append(old)
        window = tuple(None if at is None else places[at + 1] for at in opened)
        Told(self._number + len(messages), places[-1], window).keep(session)
        own = [] if named is None else [i for i, place in enumerate(places[1:]) if named.owns(place.parts)]
        if named is not None and own:
            # Later turns may write the messages that are open now once more, but nothing in front of them.
            position = min(places[own[0] + 1].start, session.chat["start"])
            session.note(named.note(self._number + own[0], position))

    def _parts(self, named: Named | None, replies: int) -> list[Parts]:
        """Of each message, those of a reply at the end; () for one that nobody named."""
        if named is None:
            return [()] * (len(self._messages) + replies)
        given = named.given[-self._new :]
        return [*[()] * (len(self._messages) - len(given)), *given, *[named.told()] * replies]


def _aligned(window: Sequence[Message], messages: Sequence[Message]) -> list[int | None]:
    """Which of the messages the open ones are, None for one that is not in the list, as what tells of tools."""
    found: list[int | None] = []
    at = len(messages)
    for message in reversed(window):
        listed = at > 0 and messages[at - 1] == message
        at -= listed
        found.append(at if listed else None)
    return found[::-1]


def _stays(place: Place | None, keep: int) -> TypeGuard[Place]:
    """Whether a turn that keeps so much of the history leaves a message in the list as it is."""
    return place is not None and place.end <= keep


async def _common(store: SessionStore, session: Session, messages: Sequence[Message]) -> list[Listed]:
    """The beginning of the session's list that is one of ``messages``, too; what it lists behind that is dropped."""
    kept: list[Listed] = []
    async for listed in listed_messages(store, session.id, session.tenant):
        if len(kept) == len(messages) or listed.number != len(kept) or not listed.same(messages[len(kept)]):
            await drop_from(store, session, len(kept))
            break
        kept.append(listed)
    return kept

"""Messages that go into a history without a turn: they are read, and wait for what comes next."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from mc_core.models.tokenizer import Tokenizer
from mc_core.notes import Note
from mc_core.session.session import Session
from server.errors import ApiError
from server.futures import settled
from server.templates.chat_template import ChatTemplate, Message
from server.turns.conversation import ChatState, Ids, Reading, Window, common, reading, remember, render, system_of
from server.turns.history import Spot, go_on_from
from server.turns.listing import Listing
from server.turns.message_notes import Told
from server.turns.parts import Named
from server.turns.service import TurnService


@dataclass(frozen=True)
class Appended:
    """What is read of new messages. went: with a reply opened behind them; ids: without. tools: which ones the history
    tells of then, where it is left as it is."""

    went: Reading
    ids: Ids
    tools: str = ""


async def append(
    turns: TurnService,
    session: Session,
    new: Sequence[Message],
    named: Named | None = None,
    spot: Spot | None = None,
    notes: Callable[[], Sequence[Note]] = tuple,
) -> int:
    """Append messages to the history of a session that is held, and store it -> tokens of history.

    named: what is new, as items. spot: the history is cut there, as one with the rest. notes: what else is stored with
    it, once the history holds all. ApiError 400 for messages that
    the template refuses, or a system message that can't stand raw for good.
    """
    assert turns.template is not None
    template, before, system = turns.template, session.prefixes, system_of(session, new)
    if spot is None:
        window, held = await turns.window(session, ())
        listing = await Listing.of(turns.host.store, session, window, new, False)
    else:
        window = Window((), spot.position, spot.position == 0)
        held = await settled(turns.engine.read(session, spot.position, session.tokens))
        listing = Listing(session, Told.behind(spot.last), new, (), len(new))
    tokenizer = turns.engine.core.bundle.tokenizer
    appended = await asyncio.to_thread(_appended, template, tokenizer, session, window, new, system, held)
    went = appended.went
    await asyncio.to_thread(listing.find, template, window, held, went)

    def then() -> None:
        known = before
        if spot is not None:
            session.prefixes = [(digest, at) for digest, at in before if at <= spot.position]
            go_on_from(session, spot)
            known = session.prefixes
        remember(session, known, new, None, went)
        if appended.tools:
            session.chat = {**session.chat, "tools": appended.tools}
        listing.note(went, None, known[-1][0] if known else "", named)
        for note in notes():
            session.note(note)

    cut = went.keep if went.keep < session.tokens else None
    tokens = await settled(turns.engine.append(session, appended.ids, cut, went.pins, then))
    turns.spent(session.tenant, len(appended.ids))
    return tokens


def _appended(
    template: ChatTemplate,
    tokenizer: Tokenizer,
    session: Session,
    window: Window,
    new: Sequence[Message],
    system: Message | None,
    held: Ids,
) -> Appended:
    nothing = np.empty(0, np.int32)
    waiting = Window((*window.messages, *new), window.start, window.first)
    end, tools = window.start + len(held), ChatState.of(session).tools
    if tools and window.first and len(held):
        # Nobody says here what these tools were: without them, the beginning would be written anew.
        with suppress(ApiError):
            ids = render(template, Window((), end, False), new, system, reply=False)
            return Appended(Reading(system, end, ids, waiting, (), nothing), ids, tools)
    try:
        wanted = render(template, window, new, system)
    except ApiError:
        # Some templates write a system message into the question behind it: it is read together with that.
        render(template, window, [*new, Message("user", "x")], system)
        return Appended(Reading(system, end, nothing, waiting, (), nothing), nothing)
    went = reading(template, tokenizer, session, window, new, system, wanted, held)
    taken = len(wanted) - len(went.ids)
    return Appended(went, wanted[taken : max(taken, _unopened(template, window, new, system, wanted))])


def _unopened(
    template: ChatTemplate, window: Window, new: Sequence[Message], system: Message | None, wanted: Ids
) -> int:
    """How much of ``wanted`` stands in front of the reply that it opens."""
    try:
        return common(wanted, render(template, window, new, system, reply=False))
    except ApiError:
        return len(wanted)  # what opens the reply is cut off again by what comes next

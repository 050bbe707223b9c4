"""What a session remembers of its conversation besides its tokens, and how the next turn goes on from there.

Templates may write earlier messages anew when later ones come: they drop the thoughts of earlier replies, trim them, or
move the system message. So the messages since the last user message stay open, as the *window*: each turn renders them
again together with the new ones, and where that differs from the history, the history is cut there.
"""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mc_core.models.tokenizer import Tokenizer
from mc_core.session.session import Session
from server.errors import ApiError, bad_request
from server.templates.chat_template import ChatTemplate, Message
from server.tools.plain import instructions
from server.tools.tool import ToolCall, ToolUse
from server.turns.prefixes import all_hashes, bounded, hash_chain, seed_of

MAX_WINDOW = 1 << 18
"""Characters of messages that are stored with a session; longer ones are open only to clients that send them again."""
Ids = NDArray[np.int32]
_CONTINUING = [bytes([value]) for value in range(0x80, 0xC0)]


@dataclass(frozen=True)
class Window:
    """The messages that the next turn renders again. start: their first token; first: nothing stands before them."""

    messages: tuple[Message, ...]
    start: int
    first: bool


@dataclass(frozen=True)
class ChatState:
    """As a session stores it. system: text of the conversation's system message. digest: hash of all messages up to the
    window's end. count: messages of the window; messages: their texts, None if they are too long. aside: instructions
    that stand among them, and how many messages before these (``server/turns/aside.py``). tools: which ones the history
    tells of, "" for none. told: of the list of messages (``message_notes.Told``)."""

    system: str | None = None
    digest: str = ""
    start: int = 0
    first: bool = False
    count: int = 0
    messages: tuple[Message, ...] | None = None
    aside: tuple[str, int] | None = None
    tools: str = ""
    told: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, session: Session) -> ChatState:
        """A session that has not had a turn of chat has an empty one."""
        return cls.of_json(session.chat)

    @classmethod
    def of_json(cls, stored_state: Mapping[str, Any]) -> ChatState:
        fields = dict(stored_state)
        if (aside := fields.get("aside")) is not None:
            fields["aside"] = tuple(aside)
        if (stored := fields.get("messages")) is not None:
            fields["messages"] = tuple(_message(*parts) for parts in stored)
        return cls(**fields)

    def json(self) -> dict[str, Any]:
        stored = None if self.messages is None else [_stored(message) for message in self.messages]
        return {**vars(self), "messages": stored}

    def window(self, session: Session, known: Sequence[Message] = ()) -> Window:
        """What is open: nothing if other text, or a rewind, came after the last message. known: the messages up to the
        window's end, from a client that sends them all. Our own go first: clients write a call's arguments anew."""
        messages = self.messages
        if messages is None and known and self.count:
            messages = tuple(known[-self.count :])
        if messages is None or not session.prefixes or session.prefixes[-1] != (self.digest, session.tokens):
            return Window((), session.tokens, session.tokens == 0)
        return Window(messages, self.start, self.first)


@dataclass(frozen=True)
class Reading:
    """How a turn goes on. keep: tokens of the history that stay. ids: what the turn reads behind them. window: the one
    that its reply joins. system: the conversation's. pins: its token ranges, as far as it is among ``ids``. held: what
    the history holds already of the last question, right before ``ids``. aside: as of a ``ChatState``."""

    system: Message | None
    keep: int
    ids: Ids
    window: Window
    pins: tuple[tuple[int, int], ...]
    held: Ids
    aside: tuple[str, int] | None = None


def unseen(session: Session, messages: Sequence[Message]) -> Sequence[Message]:
    """Those messages of a list for a named session that it does not hold yet.

    A list that repeats all of the session's messages goes on behind them; one that begins with another message is new
    as a whole, as is a single message. ApiError 409 for a list that begins like the conversation and then leaves it.
    """
    if len(messages) == 1:
        return messages
    held = {digest for digest, _ in session.prefixes}
    chain = hash_chain(messages)
    count = max((i for i, digest in enumerate(chain, 1) if digest in held), default=0)
    if count and (chain[count - 1] != session.prefixes[-1][0] or count == len(messages)):
        raise ApiError(
            409,
            f"the messages begin like session {session.id} and leave it behind message {count}: send only the new"
            " messages, or all of its messages and the new ones behind them; or leave out session_id to start another"
            " conversation from them",
            code="messages_differ",
            param="messages",
        )
    return messages[count:]


def with_news(template: ChatTemplate, session: Session, window: Window, new: Sequence[Message]) -> Sequence[Message]:
    """New messages behind a system message that tells of the tools, if the history doesn't and the template won't."""
    use = template.use
    if window.first or use is None or not use.tools or ChatState.of(session).tools == use.digest:
        return new
    asked, untold = [Message("user", "x")], template.with_tools(None)
    behind, without = (one.ids(asked, first=False, reply=True) for one in (template, untold))
    if not np.array_equal(behind, without):
        return new
    return [Message("system", instructions(use, template.tool_format.syntax)), *new]


def system_of(session: Session, new: Sequence[Message]) -> Message | None:
    """The conversation's system message: its first message, if that is one."""
    system = ChatState.of(session).system
    if system is not None:
        return Message("system", system)
    return new[0] if not session.prefixes and new[0].role == "system" else None


def render(
    template: ChatTemplate, window: Window, new: Sequence[Message], system: Message | None, *, reply: bool = True
) -> Ids:
    """The ids of the window and the new messages, with the reply opened, or not."""
    listed = [*window.messages, *new]
    told = None if window.first or system in listed else system
    return template.ids(listed, first=window.first, reply=reply, system=told)


def reading(
    template: ChatTemplate,
    tokenizer: Tokenizer,
    session: Session,
    window: Window,
    new: Sequence[Message],
    system: Message | None,
    wanted: Ids,
    held: Ids,
    stays: int | None = None,
) -> Reading:
    """How a turn goes on that wants ``wanted`` where the history holds ``held``, both from the window's start on.
    stays: the place of a message that must stay open, as all behind it.

    ApiError 400 if the system message, being among what is read, can't stand raw for good.
    """
    # The last token is always read: it asks for the reply.
    kept, taken = agreement(held, wanted[:-1], tokenizer)
    shift = window.start + kept - taken
    keep = window.start + kept
    span = system_span(template, window, new, system, wanted)
    if span is not None and span[1] > taken:
        check_system(span, session.pin_room, session.wc.budget)
    listed = (*window.messages, *new)
    opened = Window(listed, window.start, window.first)
    last = max((i for i, message in enumerate(listed) if message.role == "user"), default=0)
    at = _begins(template, listed, last, window.first, system, wanted)
    first, since = last, at
    if stays is not None and stays < last:
        first, since = stays, _begins(template, listed, stays, window.first, system, wanted)
    if since >= taken or (since >= 0 and kept == taken):
        opened = Window(listed[first:], since + shift, False)
    begins = at if at >= 0 else 0 if window.first else taken
    held_of_it = wanted[begins:taken] if kept == taken else wanted[:0]
    return Reading(system, keep, wanted[taken:], opened, pins_of(session, span, keep, taken), held_of_it)


def remember(
    session: Session,
    before: Sequence[tuple[str, int]],
    new: Sequence[Message],
    answer: Message | None,
    went: Reading,
    use: ToolUse | None = None,
) -> None:
    """Note what a turn added to the conversation. before: the hashes at its start. answer: None while there is none.
    use: the tools it told of."""
    told = [*new, *([] if answer is None else [answer])]
    last = before[-1][0] if before else seed_of(use) if session.implicit else ""
    hashes = all_hashes(told, last) if session.implicit else hash_chain(told, last)
    # What was written anew ends somewhere behind the cut, at the latest here.
    old = [(digest, at if at <= went.keep else session.tokens) for digest, at in before]
    session.prefixes = bounded([*old, *((digest, session.tokens) for digest in hashes)])
    window = (*went.window.messages, *told[len(new) :])
    known = "" if went.window.first else ChatState.of(session).tools
    session.chat = ChatState(
        system=None if went.system is None else went.system.content,
        digest=hashes[-1],
        start=went.window.start,
        first=went.window.first,
        count=len(window),
        messages=window if sum(len(message.content) for message in window) <= MAX_WINDOW else None,
        aside=went.aside,
        tools=use.digest if use is not None and use.tools else known,
    ).json()


def agreement(held: Ids, wanted: Ids, tokenizer: Tokenizer) -> tuple[int, int]:
    """How many tokens of each read as the same text: what was generated may be other tokens than what is encoded.

    Control tokens are the same as themselves alone.
    """
    same = common(held, wanted)
    while 0 < same < min(len(held), len(wanted)) and _inside_character(int(wanted[same]), tokenizer):
        same -= 1
    if same == len(held) or same == len(wanted):
        return same, same
    old, old_ends = _spelled(held[same:], tokenizer)
    new, new_ends = _spelled(wanted[same:], tokenizer)
    alike = common(np.frombuffer(old, np.uint8), np.frombuffer(new, np.uint8))
    end = np.intersect1d(old_ends[old_ends <= alike], new_ends[new_ends <= alike])[-1]
    return same + int(np.flatnonzero(old_ends == end)[0]), same + int(np.flatnonzero(new_ends == end)[0])


def system_span(
    template: ChatTemplate, window: Window, new: Sequence[Message], system: Message | None, wanted: Ids
) -> tuple[int, int] | None:
    """Where among ``wanted`` the conversation's system message and its tools stand; None if they aren't there.

    They are what changes when the message does and the tools go, wherever the template puts them.
    """
    if system is not None and not system.content.strip():
        system = None
    if system is None and not (template.use and template.use.tools):
        return None
    other, untold = _other(system), template.with_tools(None)
    listed = [*window.messages, *new]
    inside = system in listed
    # With a stand-in for the other messages it is found at little cost, as long as it is in front of them.
    brief = [*([system] if system is not None and inside else []), Message("user", "x")]
    nothing = Window((), 0, window.first)
    plain = render(template, nothing, brief, system)
    span = difference(plain, render(untold, nothing, exchanged(brief, system, other), other))
    if span is None:
        return None
    if np.array_equal(plain[: span[1]], wanted[: span[1]]):
        return _with_frame(template, system, span, wanted) if window.first and system is not None else span
    changed = untold.ids(
        exchanged(listed, system, other),
        first=window.first,
        reply=True,
        system=None if inside or window.first else other,
    )
    return difference(wanted, changed)


def check_system(span: tuple[int, int] | None, room: int, budget: int, param: str = "messages") -> None:
    """ApiError 400 if a system message that takes the tokens ``span`` can't stand raw for good."""
    if span is not None and span[1] - span[0] > room:
        raise bad_request(
            f"the system message, with the tools, takes {span[1] - span[0]} tokens; with a budget of {budget} it may"
            f" take at most {room}, since it always stays in view",
            param,
            "system_too_long",
        )


def common(ids: NDArray[Any], others: NDArray[Any]) -> int:
    """How many tokens both begin with."""
    size = min(len(ids), len(others))
    return int(np.argmin(np.append(ids[:size] == others[:size], False)))


def begin_with(session: Session, system: Message, tokens: int) -> None:
    """Note the system message of an empty session, which is about to be its first ``tokens`` tokens."""
    if tokens:
        session.pin(0, tokens)
    digest = hash_chain([system])[0]
    session.prefixes = [(digest, tokens)]
    session.chat = ChatState(system.content, digest, 0, True, 1, (system,)).json()


def pins_of(session: Session, span: tuple[int, int] | None, keep: int, taken: int) -> tuple[tuple[int, int], ...]:
    """What of the system message is to be pinned: as much as is read now.

    Templates that repeat it in every turn would pin it over and over where earlier turns stay as they are; the newest
    stands in the tail anyway when there is no room for it.
    """
    if span is None or span[1] <= taken:
        return ()
    start, end = keep + max(span[0] - taken, 0), keep + span[1] - taken
    pinned = sum(min(last, keep) - first for first, last in session.wc.protection.pins if first < keep)
    return ((start, end),) if pinned + end - start <= session.pin_room else ()


def exchanged(messages: Sequence[Message], old: Message | None, new: Message | None) -> list[Message]:
    """The same with another message in the place of one."""
    return [new if new is not None and message == old else message for message in messages]


def _other(system: Message | None) -> Message | None:
    """A system message that begins and ends otherwise."""
    if system is None:
        return None
    text = system.content.strip()
    return Message("system", next(c for c in "012" if c not in (text[0], text[-1])))


def _stored(message: Message) -> list[Any]:
    """A message for JSON; one without calls is what it was before there were any."""
    plain = [message.role, message.content, message.name]
    if not message.tool_calls and message.tool_call_id is None:
        return plain
    return [*plain, [[call.id, call.name, call.arguments] for call in message.tool_calls], message.tool_call_id]


def _message(
    role: str, content: str, name: str | None, calls: Sequence[Sequence[str]] = (), answers: str | None = None
) -> Message:
    return Message(role, content, name, tuple(ToolCall(*call) for call in calls), answers)


def difference(ids: Ids, others: Ids) -> tuple[int, int] | None:
    """What of ``ids`` is not in ``others``, between what both begin and end with."""
    start = common(ids, others)
    if start == len(ids) == len(others):
        return None
    return start, len(ids) - common(ids[start:][::-1], others[start:][::-1])


def _with_frame(template: ChatTemplate, system: Message, span: tuple[int, int], wanted: Ids) -> tuple[int, int]:
    """The same with what the template writes around it, for those that render it by itself."""
    try:
        alone = template.ids([system], first=True, reply=False)
    except ApiError:
        return span
    stands = len(alone) >= span[1] and np.array_equal(alone, wanted[: len(alone)])
    return (0, len(alone)) if stands else span


def _begins(
    template: ChatTemplate, listed: Sequence[Message], number: int, first: bool, system: Message | None, wanted: Ids
) -> int:
    """Where a message begins among ``wanted``; -1 if that can't be told, or if nothing but a system message is before
    it."""
    if number <= (1 if first else 0):
        return -1
    alone = render(template, Window((), 0, False), listed[number:], system)
    at = len(wanted) - len(alone)
    return at if at >= 0 and np.array_equal(wanted[at:], alone) else -1


def _inside_character(token: int, tokenizer: Tokenizer) -> bool:
    """Whether a token begins with what can only go on with a character of UTF-8."""
    return token not in tokenizer.control_ids and tokenizer.token_bytes(token)[:1] in _CONTINUING


def _spelled(ids: Ids, tokenizer: Tokenizer) -> tuple[bytes, NDArray[np.int64]]:
    """(the text of tokens as UTF-8, [n + 1] its length in front of each and behind them, -1 inside a character).

    What is no UTF-8 reads as U+FFFD, as it does for clients.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text, ends = bytearray(), [0]
    for token in ids.tolist():
        if token in tokenizer.control_ids:
            text += decoder.decode(b"", True).encode() + b"\xff%d\xff" % token
        else:
            text += decoder.decode(tokenizer.token_bytes(token)).encode()
        ends.append(-1 if decoder.getstate()[0] else len(text))
    return bytes(text), np.array(ends)

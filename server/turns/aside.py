"""Instructions of one request: a system message that stands in the history as long as requests repeat it.

It is no message of the conversation, and the next request without it takes it out again: the messages from its place on
stay open, and are rendered without it. While the same instructions come again they stay where they are, pinned, and a
turn reads nothing but what is new.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from server.templates.chat_template import ChatTemplate, Message
from server.turns.conversation import ChatState, Ids, Reading, Window, difference, exchanged, render

MOVE_BEHIND = 1 << 15
"""Characters of messages behind instructions from which on they move to the newest question, so that what must be read
again without them stays small."""


@dataclass(frozen=True)
class Aside:
    """The message, and how many messages of the window and the new ones stand before it."""

    message: Message
    place: int

    @classmethod
    def of(cls, text: str | None, state: ChatState, window: Window, new: Sequence[Message]) -> Aside | None:
        """Where instructions stand already, else in front of the last question."""
        if text is None or not text.strip():
            return None
        message, asked = Message("system", text), any(one.role == "user" for one in new)
        # A branch reads anew the messages that its instructions stood among.
        among = window.messages if state.digest else new
        if state.aside is not None and state.aside[0] == text and len(among) >= state.aside[1]:
            behind = sum(len(one.content) for one in among[state.aside[1] :])
            if among and (behind <= MOVE_BEHIND or not asked):
                return cls(message, state.aside[1])
        listed = (*window.messages, *new)
        last = max((i for i, one in enumerate(listed) if one.role == "user"), default=len(window.messages))
        return cls(message, last)

    def within(self, window: Window, new: Sequence[Message]) -> tuple[Window, Sequence[Message]]:
        """The same messages with this one among them."""
        size = len(window.messages)
        if self.place < size:
            before, behind = window.messages[: self.place], window.messages[self.place :]
            return replace(window, messages=(*before, self.message, *behind)), new
        at = self.place - size
        return window, [*new[:at], self.message, *new[at:]]

    def span(
        self, template: ChatTemplate, window: Window, new: Sequence[Message], system: Message | None, wanted: Ids
    ) -> tuple[int, int] | None:
        """Where it stands among ``wanted``, the ids of messages that it is one of."""
        text = self.message.content.strip()
        other = Message("system", next(c for c in "012" if c not in (text[0], text[-1])))
        changed = replace(window, messages=tuple(exchanged(window.messages, self.message, other)))
        return difference(wanted, render(template, changed, exchanged(new, self.message, other), system))

    def left_out(self, went: Reading, count: int) -> Reading:
        """What a turn leaves open of ``count`` messages, without this one, and where in it that stands."""
        messages = went.window.messages
        at = self.place - (count - len(messages))
        window = replace(went.window, messages=(*messages[:at], *messages[at + 1 :]))
        return replace(went, window=window, aside=(self.message.content, at))

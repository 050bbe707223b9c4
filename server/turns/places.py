"""Where messages end in the history that a turn reads."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from mc_core.models.tokenizer import Ids
from server.errors import ApiError
from server.templates.chat_template import ChatTemplate, Message

Range = tuple[int, int]


def message_ends(
    template: ChatTemplate, ids: Ids, messages: Sequence[Message], known: Sequence[Range | None]
) -> list[int]:
    """The end of each of ``messages`` among ``ids``, which hold them in their order, perhaps with others between, and
    then open a reply. known: where some of them stand.

    A message is found as what the template writes of it alone. Where that is not what it writes of it in the whole, the
    message ends where the next one begins.
    """
    opening = _opening(template)
    opened = len(opening) and np.array_equal(ids[-len(opening) :], opening)
    end = len(ids) - (len(opening) if opened else 0)
    alone, found = [_alone(template, message) for message in messages], list[Range | None]()
    cursor = 0
    for number, place in zip(range(len(messages) - 1), known, strict=False):
        if place is None and (place := _find(ids[:end], alone[number], cursor)) is not None and place[0] > cursor:
            # Of one that is written otherwise, a later one of the same text may have been found.
            following = _find(ids[:end], alone[number + 1], cursor)
            place = None if following is not None and following[0] < place[0] else place
        found.append(place)
        cursor = max(cursor, place[1] if place is not None else 0)
    ends, begins = [end], _last_closing(ids[:end], template.suffix_ids, cursor)
    for place in reversed(found):
        ends.append(place[1] if place is not None else begins)
        begins = place[0] if place is not None else begins
    return ends[::-1]


@lru_cache(maxsize=8)
def _opening(template: ChatTemplate) -> Ids:
    """What the template writes to open a reply."""
    question = [Message("user", "x")]
    try:
        asked, plain = (template.ids(question, first=False, reply=reply) for reply in (True, False))
    except ApiError:
        return np.empty(0, np.int32)
    return asked[len(plain) :] if np.array_equal(asked[: len(plain)], plain) else asked[:0]


def _alone(template: ChatTemplate, message: Message) -> Ids:
    try:
        return template.ids([message], first=False, reply=False)
    except ApiError:
        return np.empty(0, np.int32)


def _find(ids: Ids, part: Ids, start: int) -> Range | None:
    """The first place of ``part`` from ``start`` on."""
    wanted, size = np.ascontiguousarray(part).tobytes(), ids.itemsize
    if not wanted:
        return None
    text, at = np.ascontiguousarray(ids).tobytes(), start * size - 1
    while (at := text.find(wanted, at + 1)) >= 0:
        if at % size == 0:
            return at // size, at // size + len(part)
    return None


def _last_closing(ids: Ids, closing: Ids, start: int) -> int:
    """Behind the last ``closing`` that closes none but an earlier message; ``start`` without one."""
    found, at = start, start
    while (place := _find(ids[:-1], closing, at)) is not None and place[1] < len(ids):
        found, at = place[1], place[1]
    return found

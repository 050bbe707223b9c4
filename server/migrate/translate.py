"""A history in the tokens of one model, written in those of another.

Text is decoded and encoded; what a model's template writes around messages becomes what the other one's writes, role by
role; other control tokens stay where the other model has them by that name, and are plain text where it has not.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from mc_core.context.message_index import QUESTION, MessageIndex
from mc_core.context.reading_format import MessageKind, ReadingFormat
from mc_core.models.tokenizer import Ids, Tokenizer
from server.ingest.text_pieces import PIECE, batches, encode_pieces
from server.templates.chat_template import ChatTemplate
from server.templates.messages import Message
from server.templates.reading import reading_format

CONTINUING, LEADING = 0xC0, 0x80
"""Of a byte: which bits tell, and how they are set, where it goes on with a character of UTF-8."""


@dataclass(frozen=True)
class Language:
    """A tokenizer, and what its model's template writes around messages, None if that is not known. begin: what every
    history begins with."""

    tokenizer: Tokenizer
    format: ReadingFormat | None
    begin: Ids

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Language:
        """By its own chat template."""
        begin, format = tokenizer.prefix_ids, None
        if tokenizer.chat_template is not None:
            template = ChatTemplate(tokenizer, tokenizer.special_tokens)
            format = reading_format(template, tokenizer)
            if format is not None:
                written = template.around([Message(format.kinds[0].role, "x"), Message(QUESTION, "x")])
                begin = written[0][: format.begin]
        return cls(tokenizer, format, begin)


@dataclass(frozen=True)
class Frame:
    """Tokens [start, end) of the old history in whose place ``ids`` stand in the new one."""

    start: int
    end: int
    ids: Ids


@dataclass(frozen=True)
class Translation:
    """ids [n] of the new history. places: where a token of the old one is in it, for those that were asked for."""

    ids: Ids
    places: dict[int, int]


def translate(old: Language, new: Language, ids: Ids, wanted: Iterable[int]) -> Translation:
    """wanted: tokens of the old history, its end included, whose places in the new one are to be told.

    A place within a frame is at its end in the new one, and one within a character where that begins.
    """
    asked = sorted({*wanted, 0, len(ids)})
    parts: list[Ids] = []
    places: dict[int, int] = {}
    length = at = 0
    for frame in [*_frames(old, new, ids), Frame(len(ids), len(ids), ids[:0])]:
        cuts = {place: _whole(old.tokenizer, ids, at, place) for place in asked if at <= place <= frame.start}
        edges = sorted({at, *cuts.values(), frame.start})
        told = {at: length}
        for start, end in pairwise(edges):
            parts.append(_content(old.tokenizer, new.tokenizer, ids[start:end], first=not start))
            length += len(parts[-1])
            told[end] = length
        places = {place: told[cut] for place, cut in cuts.items()} | places
        parts.append(frame.ids)
        length, at = length + len(frame.ids), frame.end
        places |= {place: length for place in asked if frame.start < place < frame.end}
    return Translation(np.concatenate(parts).astype(np.int32), places)


def _frames(old: Language, new: Language, ids: Ids) -> Iterator[Frame]:
    """What begins the history and stands around its messages, in order."""
    begins = len(old.begin) if np.array_equal(ids[: len(old.begin)], old.begin) else 0
    if len(ids):
        yield Frame(0, begins, new.begin)
    if old.format is None or new.format is None:
        return
    index = MessageIndex(old.format)
    index.append(ids)
    kinds = [_same_role(kind, new.format) for kind in old.format.kinds]
    for start, end, kind, opens in index.frames():
        if start >= begins:
            yield Frame(start, end, kinds[kind].opening if opens else kinds[kind].closing)


def _same_role(kind: MessageKind, format: ReadingFormat) -> MessageKind:
    """The other model's kind of message of this role, else the user's."""
    roles = {one.role: one for one in format.kinds}
    return roles.get(kind.role, roles[QUESTION])


def _whole(tokenizer: Tokenizer, ids: Ids, start: int, place: int) -> int:
    """The place, or where the character begins that it is within."""
    while start < place < len(ids) and _goes_on(tokenizer.token_bytes(int(ids[place]))):
        place -= 1
    return place


def _goes_on(token: bytes) -> bool:
    return bool(token) and token[0] & CONTINUING == LEADING


def _content(old: Tokenizer, new: Tokenizer, ids: Ids, first: bool) -> Ids:
    """Text, and the control tokens that stand in it."""
    kept = {old.token_bytes(i): i for i in old.control_ids}
    same = {kept[name]: i for i in new.control_ids if (name := new.token_bytes(i)) in kept}
    controls = np.flatnonzero(np.isin(ids, list(same)))
    parts: list[Ids] = []
    for start, end in pairwise([-1, *controls.tolist(), len(ids)]):
        parts.append(_encoded(new, _text(old, ids[start + 1 : end]), first and not start + 1))
        parts.append(np.array([same[int(i)] for i in ids[end : end + 1]], np.int32))
    return np.concatenate(parts)


def _text(tokenizer: Tokenizer, ids: Ids) -> str:
    """Token by token, so that no blank is lost where a part begins."""
    known = {token: tokenizer.token_bytes(token) for token in np.unique(ids).tolist()}
    return b"".join([known[token] for token in ids.tolist()]).decode("utf-8", "replace")


def _encoded(tokenizer: Tokenizer, text: str, first: bool) -> Ids:
    """first: the text begins a history."""
    if not text:
        return np.empty(0, np.int32)
    if len(text) <= PIECE:
        return tokenizer.encode(text) if first else tokenizer.encode_more(text)

    async def all_pieces() -> list[Ids]:
        found, fresh = [], first
        async for pieces in batches(_one(text), tokenizer):
            found.append(encode_pieces(tokenizer, pieces, fresh))
            fresh = False
        return found

    return np.concatenate(asyncio.run(all_pieces()))


async def _one(text: str) -> AsyncIterator[str]:
    yield text

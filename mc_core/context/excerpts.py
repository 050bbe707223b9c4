"""How a model is told what the places of a history are that it is shown: frames around and between them.

A working context leaves out most of a long history, so what stands in it begins and ends in the middle of messages.
A *frame* is a few tokens of the model's own template, no part of the history, that the model reads in such a place: it
opens the message that a place is from, closes it again, or tells that something is left out. Ingested text, which is
of no message, is shown as one of the user's, which names its title. What is shown whole has no frames. And a place is
read from where a sentence begins to where one ends: half a sentence says little, and keeps a small model from what
stands beside it. So does what stands raw for no sake of its own: the history's first block, and what the tail alone
holds of the conversation before the question. What is most likely to answer is read last, right before the question.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mc_core.context.message_index import QUESTION, MessageIndex, Place
from mc_core.context.reading_format import TEXT, Ids, MessageKind, ReadingFormat
from mc_core.context.sentences import SentenceIndex
from mc_core.context.sources import Sources
from mc_core.context.working_context import WorkingContext
from mc_core.models.words import Words

Ints = NDArray[np.int64]
Piece = tuple[int, int]
"""Tokens [start, end) that are read one behind the other."""


@dataclass(frozen=True, eq=False)
class Frame:
    """Tokens ``ids`` that the model reads before token ``before`` of the history."""

    before: int
    ids: Ids


class Moved(NamedTuple):
    """Tokens [start, end) that are read right before token ``before``, which stands behind them."""

    start: int
    end: int
    before: int


@dataclass(frozen=True, eq=False)
class Excerpt:
    """What the model reads of the raw entries: all but the token ranges ``left_out``, with ``frames``, in order but for
    what is ``moved``."""

    frames: tuple[Frame, ...] = ()
    left_out: tuple[tuple[int, int], ...] = ()
    moved: Moved | None = None

    @property
    def hidden(self) -> int:
        """Tokens of raw entries that are not shown."""
        return sum(end - start for start, end in self.left_out)

    @property
    def framed(self) -> int:
        """Tokens of frames."""
        return sum(len(frame.ids) for frame in self.frames)

    def shown(self, starts: Ints, ends: Ints) -> Ints:
        """How many tokens of each range [starts, ends) are not left out [n]."""
        firsts, lasts = np.array(self.left_out, np.int64).reshape(-1, 2).T
        over = np.minimum(ends[:, None], lasts) - np.maximum(starts[:, None], firsts)
        return ends - starts - over.clip(0).sum(1)

    def shows(self, start: int, end: int) -> bool:
        """Whether none of [start, end) is left out."""
        return all(end <= first or start >= last for first, last in self.left_out)


class Excerpts:
    """Makes excerpts of one history, which it indexes."""

    def __init__(self, format: ReadingFormat, words: Words, block_size: int) -> None:
        self.format, self._size = format, block_size
        self.messages = MessageIndex(format, words)
        self.sentences = SentenceIndex(words.stops, block_size)

    @property
    def reach(self) -> int:
        """Newest tokens that ``rewind`` wants."""
        return max(self.messages.reach, self._size - 1)

    def append(self, ids: Ids) -> None:
        """Tokens [n] were added to the history."""
        self.messages.append(ids)
        self.sentences.append(ids)

    def rewind(self, position: int, tail: Ids) -> None:
        """The history was cut at ``position``; tail: its newest tokens then, ``reach`` of them, or at least those of
        the open block."""
        self.messages.rewind(position, tail)
        self.sentences.rewind(position, tail)

    def of(
        self,
        context: WorkingContext,
        room: int,
        sources: Sources | None = None,
        asked: Ints | None = None,
        best: int | None = None,
    ) -> Excerpt:
        """What is read of a working context, with at most ``room`` tokens of frames. sources: of text of no message.
        asked: blocks that the focus opened, or keeps, for what they say; None for all that stand raw. best: the one
        whose sentences are read last before the last question.

        A place that begins or ends in the middle of a sentence is read from its first whole sentence to its last one,
        if it has any; pins are read whole. Of the first block, and of what the tail alone holds before the last
        question, nothing is read if the focus did not ask for it. All is read as it is where the history ends with
        text of no message, or has nothing else.
        """
        if self._ends_with_text(context.num_tokens):
            return Excerpt()
        reading = _Reading(self.format, self.messages, self.sentences, self._size, sources or Sources(), asked, best)
        return reading.of(context, room)

    def _ends_with_text(self, tokens: int) -> bool:
        end = self.messages.place(tokens)
        return not len(self.messages) or (end.kind == TEXT and self.messages.text_stands(end, tokens))


@dataclass(eq=False)
class _Reading:
    """How a history with these messages, sentences and sources is read, where these blocks were asked for, and one of
    them is the best."""

    format: ReadingFormat
    messages: MessageIndex
    sentences: SentenceIndex
    block_size: int
    sources: Sources
    asked: Ints | None
    best: int | None

    def of(self, context: WorkingContext, room: int) -> Excerpt:
        pieces: list[Piece] = []
        left_out: list[Piece] = []
        for start, end in _stretches(context):
            first, last = self._read(context, start, end)
            left_out += [(a, b) for a, b in ((start, first), (last, end)) if a < b]
            if first < last:
                pieces.append((first, last))
        moved = self._moved(context, pieces)
        frames = self._frames(pieces if moved is None else in_reading_order(pieces, moved))
        return Excerpt(tuple(within(list(frames), room, self.format.gap)), tuple(left_out), moved)

    def _frames(self, pieces: Sequence[Piece]) -> Iterator[Frame]:
        """Of pieces in the order in which they are read."""
        before: int | None = None
        for first, last in pieces:
            borders = self._text_borders(first, last)
            for begin, stop in zip([first, *borders], [*borders, last], strict=True):
                ids = self._border(begin) if begin == before else self._between(before, begin)
                if len(ids):
                    yield Frame(begin, ids)
                before = stop

    def _moved(self, context: WorkingContext, pieces: Sequence[Piece]) -> Moved | None:
        """The best block's sentences, as far as they are read; None if all of the history is shown, or no question
        stands behind them, or if they stand right before it anyway, or are pinned to their place."""
        question, best, size = self._last_question, self.best, self.block_size
        asks = any(first <= question < last for first, last in pieces)
        if best is None or (best + 1) * size > min(question, context.tail_start):
            return None
        of = next((piece for piece in pieces if piece[0] < (best + 1) * size and piece[1] > best * size), None)
        if of is None or not (asks and context.levels.any()):
            return None
        start, end = self._sentences_of(context, best)
        start, end = max(start, of[0]), min(end, of[1], question)
        pinned = context.protection.pinned(np.arange(start // self.block_size, (end - 1) // self.block_size + 1))
        moved = Moved(start, end, question)
        parts = [part for piece in pieces for part in _parts(piece, moved)]
        stands = parts[parts.index((start, end)) + 1][0] == question
        return None if pinned.any() or stands else moved

    def _sentences_of(self, context: WorkingContext, block: int) -> Piece:
        """The tokens of a block, and of its neighbours what belongs to the sentences at its borders, of the same
        message or text."""
        first, last = block * self.block_size, (block + 1) * self.block_size
        start, end = first, last
        if block:
            start -= self.block_size - (self.sentences.ends(block - 1) or 0)
            start = max([start, *self._borders(start, first)])
        if last < context.tail_start:
            begins = self.sentences.begins(block + 1)
            end += self.block_size if begins is None else begins
            end = min([end, *self._borders(last, end)])
        return start, end

    def _read(self, context: WorkingContext, start: int, end: int) -> Piece:
        """What is read of the stretch [start, end)."""
        if self._is_first_block(context, start, end):
            return 0, self.format.begin
        if 0 < start == context.tail_start and self._is_talk_before(context, start, end):
            return self._last_question, end
        return self._whole_sentences(context, start, end)

    @cached_property
    def _last_question(self) -> int:
        return self.messages.last_of(QUESTION)

    def _is_talk_before(self, context: WorkingContext, start: int, end: int) -> bool:
        """Whether a stretch begins with other messages than the last question, which stands in it, that nobody asked
        for or pinned."""
        place, question = self.messages.place(start), self._last_question
        talk = place.kind != TEXT or place.inside >= 0
        if not (talk and start < question < end) or self._asked_for(start, question):
            return False
        blocks = np.arange(start // self.block_size, (question - 1) // self.block_size + 1)
        return not context.protection.pinned(blocks).any()

    def _is_first_block(self, context: WorkingContext, start: int, end: int) -> bool:
        """Whether a stretch is the history's first block, which stands for no other sake than being the first."""
        alone = start == 0 and end == self.block_size <= context.tail_start
        pinned = any(first < end for first, _ in context.protection.pins)
        return alone and not pinned and not self._asked_for(start, end)

    def _asked_for(self, start: int, end: int) -> bool:
        """Whether a block of the tokens [start, end) was."""
        if self.asked is None:
            return True
        first, last = start // self.block_size, (end - 1) // self.block_size
        return bool(((self.asked >= first) & (self.asked <= last)).any())

    def _whole_sentences(self, context: WorkingContext, start: int, end: int) -> Piece:
        """[start, end) without the parts of sentences at its borders."""
        first_block, last_block = start // self.block_size, (end - 1) // self.block_size
        pinned = context.protection.pinned(np.array([first_block, last_block], np.int64))
        first, last = start, end
        if not pinned[0] and start < context.tail_start:
            first = self._begin(start)
        if not pinned[1] and end < context.num_tokens:
            last = self._end(end)
        return (first, last) if first < last else (start, end)

    def _begin(self, start: int) -> int:
        if self.messages.place(start).inside >= 0 or self.messages.place(start - 1).inside >= 0:
            return start
        skipped = self.sentences.begins(start // self.block_size)
        begins = [start + skipped] if skipped is not None else []
        return min([*begins, *self._borders(start, start + self.block_size)], default=start)

    def _end(self, end: int) -> int:
        if self.messages.place(end).inside >= 0:
            return end
        block = (end - 1) // self.block_size
        kept = self.sentences.ends(block)
        borders = self._borders(block * self.block_size, end)
        ends = [block * self.block_size + kept] if kept is not None else []
        return max([*ends, *borders], default=end)

    def _place(self, token: int) -> Place:
        place = self.messages.place(token)
        return replace(place, source=self.sources.number(token)) if place.kind == TEXT else place

    def _kind(self, place: Place) -> MessageKind:
        return self.format.kind(place.kind, self.sources.about(place.source))

    def _borders(self, start: int, end: int) -> list[int]:
        """Tokens in [start, end] at which a message or a text begins or ends."""
        return [*self.messages.borders(start, end), *self._source_borders(start, end)]

    def _text_borders(self, start: int, end: int) -> list[int]:
        """Tokens within (start, end) at which a text of no message begins or ends."""
        return sorted({*self.messages.text_borders(start, end), *self._source_borders(start + 1, end - 1)})

    def _source_borders(self, start: int, end: int) -> list[int]:
        """Tokens in [start, end] at which another text follows one."""
        starts = self.sources.starts(start, end)
        return [at for at in starts if (place := self.messages.place(at)).kind == TEXT and self._follows(place, at)]

    def _follows(self, place: Place, token: int) -> bool:
        """Whether ``token``, at ``place`` among texts of no message, has such text on both sides."""
        return self.messages.text_stands(place, token) and self.messages.text_goes_on(place, token)

    def _between(self, end: int | None, start: int) -> Ids:
        """What is read between a stretch that ends before token ``end`` and one that begins with ``start``."""
        to = self._place(start)
        if end is None:
            return self._opening(to)
        of = self._place(end)
        if of == to and of.inside < 0 and (of.kind != TEXT or self._stands(of, end)):
            return self.format.gap
        if to.inside < 0 and self._place(end - 1) == to:
            return self.format.gap  # what is moved behind the last words of its own message or text
        return np.concatenate([self._closing(of, end), self._opening(to)])

    def _stands(self, place: Place, token: int) -> bool:
        """Whether a text of no message, which goes on at ``place``, stands before ``token``."""
        return self.messages.text_stands(place, token) and self.sources.start(place.source) < token

    def _border(self, start: int) -> Ids:
        """What is read where a text of no message begins or ends, and nothing is left out."""
        to = self._place(start)
        if to.kind != TEXT:
            return self._kind(self._place(start - 1)).closing
        return np.concatenate([self._closing(to, start), self._kind(to).opening])

    def _opening(self, place: Place) -> Ids:
        """What has to be read before a stretch begins at ``place``."""
        kind = self._kind(place)
        if place.inside < 0:
            return kind.opening
        if place.opens or place.kind == TEXT:
            return kind.opening[: place.inside] if place.opens else kind.opening[:0]
        return np.concatenate([kind.opening, kind.closing[: place.inside]])

    def _closing(self, place: Place, token: int) -> Ids:
        """What has to be read behind a stretch that ends before ``token``, which is at ``place``."""
        kind = self._kind(place)
        if place.inside == 0 and place.opens:
            before = replace(place, event=place.event - 1, kind=TEXT, opens=False, inside=-1)
            return self._closing(before, token)
        if place.kind == TEXT:
            return kind.closing if self.messages.text_stands(place, token) else kind.closing[:0]
        if place.opens:
            return np.concatenate(
                [kind.opening[place.inside :] if place.inside > 0 else kind.opening[:0], kind.closing]
            )
        return kind.closing[place.inside :]


def _stretches(context: WorkingContext) -> Iterator[Piece]:
    """Token ranges [start, end) that stand raw, one behind the other."""
    raw = context.levels == 0
    starts, ends = context.starts()[raw], context.ends()[raw]
    cut = np.flatnonzero(starts[1:] != ends[:-1])
    yield from zip(starts[np.append(0, cut + 1)].tolist(), ends[np.append(cut, len(ends) - 1)].tolist(), strict=True)


def in_reading_order(pieces: Sequence[Piece], moved: Moved) -> list[Piece]:
    """Pieces in order of time -> cut and ordered as they are read."""
    place, parts = (moved.start, moved.end), [part for piece in pieces for part in _parts(piece, moved)]
    parts.remove(place)
    parts.insert([start for start, _ in parts].index(moved.before), place)
    return parts


def _parts(piece: Piece, moved: Moved) -> Iterator[Piece]:
    """A piece, cut where something is moved from or to."""
    cuts = [piece[0], *(at for at in moved if piece[0] < at < piece[1]), piece[1]]
    return pairwise(cuts)


def within(frames: Sequence[Frame], room: int, gap: Ids | None = None) -> list[Frame]:
    """What ``room`` tokens hold of frames: without as many of the oldest gaps as need be, or else the newest."""
    excess = sum(len(frame.ids) for frame in frames) - room
    gaps = [frame for frame in frames if frame.ids is gap]
    if gaps and excess > 0:
        spared = {id(frame) for frame in gaps[: -(-excess // len(gaps[0].ids))]}
        frames = [frame for frame in frames if id(frame) not in spared]
    total = np.cumsum([len(frame.ids) for frame in reversed(frames)])
    kept = int(np.searchsorted(total, room, side="right"))
    return list(frames[len(frames) - kept :])

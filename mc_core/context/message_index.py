"""Where the messages of a history begin and end, as the control tokens of its template tell."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mc_core.context.reading_format import TEXT, Ids, ReadingFormat
from mc_core.models.words import Words

Ranges = NDArray[np.int64]
LONGEST_QUESTION = 32
"""Tokens, no more than a block: what is said before them may be what a later question asks for."""


@dataclass(frozen=True)
class Place:
    """A token of the history: of which stretch (number of the last event before it), how far into that event's own
    tokens (``inside`` >= 0), or in the content behind them (-1). source: of text of no message, its number, else -1."""

    event: int
    kind: int
    opens: bool
    inside: int
    source: int = -1


QUESTION = "user"
"""Role of the messages that ask."""


@dataclass(frozen=True, eq=False)
class _Pattern:
    """Where the first ``mark`` of the tokens stand, messages begin, or end."""

    tokens: Ids
    mark: int
    kind: int
    opens: bool

    def shared(self, ids: Ids) -> int | None:
        """How many of the pattern's tokens ``ids`` begins with, 0 if too few; None if more ids may follow."""
        count = min(len(self.tokens), len(ids))
        differs = np.flatnonzero(self.tokens[:count] != ids[:count])
        if not len(differs):
            return count if count == len(self.tokens) else None
        return int(differs[0]) if differs[0] >= self.mark else 0


class MessageIndex:
    """Where the messages of one history begin and end, as their control tokens tell."""

    def __init__(self, format: ReadingFormat, words: Words | None = None) -> None:
        """words: of the vocabulary; without them no message is known for a question."""
        self.format, self._words = format, words
        self._patterns = [
            _Pattern(tokens, mark, number, opens)
            for number, kind in enumerate(format.kinds)
            for tokens, mark, opens in ((kind.opening, kind.mark, True), (kind.closing, 1, False))
        ]
        # The longest first: one role's opening may begin like another's.
        self._patterns.sort(key=lambda pattern: -pattern.mark)
        self._first = np.unique([pattern.tokens[0] for pattern in self._patterns]).astype(np.int32)
        self._longest = max(len(pattern.tokens) for pattern in self._patterns)
        self.tokens = 0
        self._held = np.empty(0, np.int32)  # the newest tokens: a pattern may go on in the next ones
        self._at = np.empty(64, np.int64)
        self._kind = np.empty(64, np.int8)
        self._opens = np.empty(64, bool)
        self._length = np.empty(64, np.int8)
        self._asks = np.empty(64, bool)  # whether it ends a message that asks and says nothing else
        self._noted: dict[int, bool] = {}  # the same of what is noted again after a cut
        self._count = 0
        self._unsure = 0  # 1 if the last event's own tokens may go on in the next ones

    def __len__(self) -> int:
        """Beginnings and ends of messages."""
        return self._count

    def append(self, ids: Ids) -> None:
        """Tokens [n] were added to the history."""
        self._count, self._unsure = self._count - self._unsure, 0
        start = self.tokens - len(self._held)
        joined = np.concatenate([self._held, ids]).astype(np.int32)
        self.tokens += len(ids)
        for place in np.flatnonzero(np.isin(joined, self._first)).tolist():
            self._note(joined, start, place)
        self._held = joined[max(0, len(joined) - self.reach) :]

    def rewind(self, position: int, tail: Ids) -> None:
        """The history was cut at ``position``; tail: its newest tokens then, ``reach`` of them if they are known."""
        # What the cut may have shortened is noted again.
        known = position - min(self.reach, len(tail))
        row = int(np.searchsorted(self._at[: self._count], known))
        again = slice(row, self._count)
        self._noted = dict(zip(self._at[again].tolist(), self._asks[again].tolist(), strict=True))
        self._count, self._unsure = row, 0
        while self._count and self._at[self._count - 1] + self._length[self._count - 1] > position:
            self._count -= 1
        self.tokens, self._held = position, tail[max(0, len(tail) - self.reach) :]
        self.append(tail[:0])
        self._noted = {}

    def frames(self) -> Iterator[tuple[int, int, int, bool]]:
        """What opens and closes messages, in order: its tokens [start, end), the kind of message, whether it opens."""
        for row in range(self._count):
            start = int(self._at[row])
            yield start, start + int(self._length[row]), int(self._kind[row]), bool(self._opens[row])

    @property
    def reach(self) -> int:
        """Tokens before its last one that tell where a message begins or ends, and whether it asks."""
        return self._longest - 1 + LONGEST_QUESTION

    def _note(self, ids: Ids, start: int, place: int) -> None:
        at, last = start + place, self._count - 1
        if last >= 0 and at < self._at[last] + self._length[last]:
            return
        for pattern in self._patterns:
            here = ids[place : place + len(pattern.tokens)]
            length = pattern.shared(here)
            if length is None:
                # It is known for what it is by its mark, as the opening is that a template leaves for the reply to end.
                self._unsure = int(len(here) >= pattern.mark)
                length = len(here) if self._unsure else None
            if length is None:
                return
            if length:
                kind = pattern.kind if pattern.opens else self._open_kind(pattern.kind)
                self._add(at, kind, pattern.opens, length, not pattern.opens and self._only_asks(ids[:place], at))
                return

    def _only_asks(self, ids: Ids, at: int) -> bool:
        """Whether the message that ``ids``, up to token ``at``, are the end of ends as a question does, and no sentence
        ends before that, as far back as questions go."""
        if at in self._noted or self._words is None:
            return self._noted.get(at, False)
        last = self._count - 1
        begin = int(self._at[last]) + int(self._length[last]) if last >= 0 else 0
        said = ids[max(0, len(ids) - min(LONGEST_QUESTION, at - begin)) :]
        return bool(len(said) and self._words.asks[said[-1]] and not self._words.stops[said[:-1]].any())

    def _open_kind(self, kind: int) -> int:
        """Of the message that is closed: several roles may be closed alike."""
        last = self._count - 1
        if last >= 0 and self._opens[last]:
            return int(self._kind[last])
        return kind

    def _add(self, at: int, kind: int, opens: bool, length: int, asks: bool) -> None:
        if self._count == len(self._at):
            for name in ("_at", "_kind", "_opens", "_length", "_asks"):
                column = getattr(self, name)
                setattr(self, name, np.concatenate([column, np.empty_like(column)]))
        row = self._count
        self._at[row], self._kind[row], self._opens[row], self._length[row] = at, kind, opens, length
        self._asks[row] = asks
        self._count += 1

    def last_of(self, role: str) -> int:
        """Where the last message of a role begins, -1 without one."""
        kinds = [number for number, kind in enumerate(self.format.kinds) if kind.role == role]
        rows = np.flatnonzero(self._opens[: self._count] & np.isin(self._kind[: self._count], kinds))
        return int(self._at[rows[-1]]) if len(rows) else -1

    def questions(self) -> Ranges:
        """Closed messages of the user's that ask and say nothing else, or their last ``LONGEST_QUESTION`` tokens, as
        ranges [n, 2]."""
        count = max(1, self._count)
        kinds = [number for number, kind in enumerate(self.format.kinds) if kind.role == QUESTION]
        ends = ~self._opens[1:count] & self._asks[1:count] & self._opens[: count - 1]
        rows = np.flatnonzero(ends & np.isin(self._kind[: count - 1], kinds))
        start, end = self._at[rows], self._at[rows + 1]
        return np.stack([np.maximum(start, end - LONGEST_QUESTION), end], 1)

    def borders(self, start: int, end: int) -> list[int]:
        """Tokens in [start, end] at which a message begins, or right behind one's end."""
        first, last = np.searchsorted(self._at[: self._count], [start - self._longest, end], side="right")
        rows = np.arange(first, last)
        borders = self._at[rows] + np.where(self._opens[rows], 0, self._length[rows])
        return borders[(borders >= start) & (borders <= end)].tolist()

    def text_borders(self, start: int, end: int) -> list[int]:
        """Tokens within (start, end) at which text of no message begins or ends."""
        at, size = self._at[: self._count], self._length[: self._count]
        first, last = np.searchsorted(at, [start, end])
        rows = np.arange(max(0, first - 1), min(self._count, last + 1))
        behind = at[rows] + size[rows]
        follows = np.append(at, np.iinfo(np.int64).max)[rows + 1]
        texts = ~self._opens[rows] & (follows > behind)
        borders = np.concatenate([behind[texts], follows[texts]])
        if self._count and at[0] > self.format.begin:
            borders = np.append(borders, [self.format.begin, at[0]])
        return np.unique(borders[(borders > start) & (borders < end)]).tolist()

    def message(self, token: int) -> tuple[str, int, int] | None:
        """(role, start, end) of the message that a token is of; None for text of no message."""
        row = self.place(token).event
        if row >= 0 and not self._opens[row] and token < self._at[row] + self._length[row]:
            row -= 1  # a token that closes it
        if row < 0 or not self._opens[row]:
            return None
        end = self.tokens
        if row + 1 < self._count:
            end = int(self._at[row + 1]) + (0 if self._opens[row + 1] else int(self._length[row + 1]))
        return self.format.kinds[int(self._kind[row])].role, int(self._at[row]), end

    def place(self, token: int) -> Place:
        row = int(np.searchsorted(self._at[: self._count], token, side="right")) - 1
        if row < 0:
            return Place(-1, TEXT, False, token if token < self.format.begin else -1)
        inside = token - int(self._at[row])
        inside = inside if inside < self._length[row] else -1
        opens = bool(self._opens[row])
        kind = int(self._kind[row]) if opens or inside >= 0 else TEXT
        return Place(row, kind, opens, inside)

    def text_goes_on(self, place: Place, token: int) -> bool:
        """Whether ``token``, at ``place`` among text of no message, is such text itself."""
        follows = int(self._at[place.event + 1]) if place.event + 1 < self._count else self.tokens
        return token < follows

    def text_stands(self, place: Place, token: int) -> bool:
        """Whether text of no message, which goes on at ``place``, stands before ``token``."""
        if place.event < 0:
            return token > self.format.begin
        at, length = int(self._at[place.event]), int(self._length[place.event])
        return not self._opens[place.event] and token > at + length


def asking(format: ReadingFormat, ids: Ids) -> NDArray[np.bool_]:
    """Which tokens of a turn are of what its user says [n]; without any, all but what the template writes around
    messages. Its own words, names of roles above all, would find other messages and nothing else."""
    index = MessageIndex(format)
    index.append(ids)
    count = len(index)
    starts, lengths, opens = index._at[:count], index._length[:count].astype(np.int64), index._opens[:count]
    ends = np.append(starts, len(ids))[1:]
    asks, content = np.zeros(len(ids), bool), np.ones(len(ids), bool)
    for start, length, end, opened, kind in zip(starts, lengths, ends, opens, index._kind[:count], strict=True):
        content[start : start + length] = False
        asks[start + length : end] = opened and format.kinds[kind].role == QUESTION
    return asks if asks.any() else content | (not content.any())

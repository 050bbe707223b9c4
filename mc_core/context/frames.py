"""How a model is told what the places of a history are that it is shown: frames around and between them.

A working context leaves out most of a long history, so what stands in it begins and ends in the middle of messages.
A *frame* is a few tokens of the model's own template, no part of the history, that the model reads in such a place: it
opens the message that a place is from, closes it again, or tells that something is left out. Ingested text, which is of no
message, is shown as one of the user's. What is shown whole has no frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mc_core.context.working_context import WorkingContext

Ids = NDArray[np.int32]
Ints = NDArray[np.int64]
TEXT = -1
"""In place of a kind of message: text that is of no message."""


@dataclass(frozen=True, eq=False)
class MessageKind:
    """What the template writes around messages of one role.

    opening [n], closing [m]: begin with a control token, which no text of a message can hold. mark: the part of the
    opening that tells it from others: a message that begins with a line break may grow together with the rest.
    """

    role: str
    opening: Ids
    closing: Ids
    mark: int


@dataclass(frozen=True, eq=False)
class ReadingFormat:
    """The frames of one model. kinds: of messages. text: around text of no message. gap: where
    something of a message or text is left out. begin: tokens before any message, at the beginning of every history.
    """

    kinds: tuple[MessageKind, ...]
    text: MessageKind
    gap: Ids
    begin: int = 0

    def kind(self, number: int) -> MessageKind:
        return self.text if number == TEXT else self.kinds[number]


@dataclass(frozen=True, eq=False)
class Frame:
    """Tokens ``ids`` that the model reads before token ``before`` of the history."""

    before: int
    ids: Ids


@dataclass(frozen=True)
class _Place:
    """A token of the history: of which stretch (number of the last event before it), how far into that event's own
    tokens (``inside`` >= 0), or in the content behind them (-1)."""

    event: int
    kind: int
    opens: bool
    inside: int


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

    def __init__(self, format: ReadingFormat) -> None:
        self.format = format
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
        self._count = 0

    def __len__(self) -> int:
        """Beginnings and ends of messages."""
        return self._count

    def append(self, ids: Ids) -> None:
        """Tokens [n] were added to the history."""
        start = self.tokens - len(self._held)
        joined = np.concatenate([self._held, ids]).astype(np.int32)
        self.tokens += len(ids)
        for place in np.flatnonzero(np.isin(joined, self._first)).tolist():
            self._note(joined, start, place)
        self._held = joined[max(0, len(joined) - self.reach) :]

    def rewind(self, position: int, tail: Ids) -> None:
        """The history was cut at ``position``; tail: its newest tokens then, ``reach`` of them if they are known."""
        # What the cut may have shortened is noted again with what comes next.
        self._count = int(np.searchsorted(self._at[: self._count], position - self.reach))
        self.tokens, self._held = position, tail[max(0, len(tail) - self.reach) :]

    @property
    def reach(self) -> int:
        """Tokens before its last one that tell where a message begins or ends."""
        return self._longest - 1

    def _note(self, ids: Ids, start: int, place: int) -> None:
        at, last = start + place, self._count - 1
        if last >= 0 and at < self._at[last] + self._length[last]:
            return
        for pattern in self._patterns:
            length = pattern.shared(ids[place : place + len(pattern.tokens)])
            if length is None:
                return
            if length:
                kind = pattern.kind if pattern.opens else self._open_kind(pattern.kind)
                self._add(at, kind, pattern.opens, length)
                return

    def _open_kind(self, kind: int) -> int:
        """Of the message that is closed: several roles may be closed alike."""
        last = self._count - 1
        if last >= 0 and self._opens[last]:
            return int(self._kind[last])
        return kind

    def _add(self, at: int, kind: int, opens: bool, length: int) -> None:
        if self._count == len(self._at):
            for name in ("_at", "_kind", "_opens", "_length"):
                column = getattr(self, name)
                setattr(self, name, np.concatenate([column, np.empty_like(column)]))
        row = self._count
        self._at[row], self._kind[row], self._opens[row], self._length[row] = at, kind, opens, length
        self._count += 1

    # ---- frames

    def frames(self, context: WorkingContext) -> list[Frame]:
        """Frames of what stands raw in a working context, in order; none while no message is open at its end."""
        if not context.num_tokens or self._place(context.num_tokens).kind == TEXT:
            return []
        frames: list[Frame] = []
        before: int | None = None
        for start, end in self._runs(context):
            if before is None or start != before:
                ids = self._between(before, start)
            else:
                ids = self._border(start)
            if len(ids):
                frames.append(Frame(start, ids))
            before = end
        return frames

    def _runs(self, context: WorkingContext) -> Iterator[tuple[int, int]]:
        """Raw stretches [start, end), cut where text of no message begins or ends."""
        raw = context.levels == 0
        starts, ends = context.starts()[raw], context.ends()[raw]
        cut = np.flatnonzero(starts[1:] != ends[:-1])
        firsts, lasts = starts[np.append(0, cut + 1)], ends[np.append(cut, len(ends) - 1)]
        for start, end in zip(firsts.tolist(), lasts.tolist(), strict=True):
            inner = [at for at in self._text_borders(start, end)]
            yield from zip([start, *inner], [*inner, end], strict=True)

    def _text_borders(self, start: int, end: int) -> list[int]:
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

    def _place(self, token: int) -> _Place:
        row = int(np.searchsorted(self._at[: self._count], token, side="right")) - 1
        if row < 0:
            return _Place(-1, TEXT, False, token if token < self.format.begin else -1)
        inside = token - int(self._at[row])
        inside = inside if inside < self._length[row] else -1
        opens = bool(self._opens[row])
        kind = int(self._kind[row]) if opens or inside >= 0 else TEXT
        return _Place(row, kind, opens, inside)

    def _between(self, end: int | None, start: int) -> Ids:
        """What is read between a stretch that ends before token ``end`` and one that begins with ``start``."""
        to = self._place(start)
        if end is None:
            return self._opening(to)
        of = self._place(end)
        if of == to and of.inside < 0 and (of.kind != TEXT or self._text_stands(of, end)):
            return self.format.gap
        return np.concatenate([self._closing(of, end), self._opening(to)])

    def _border(self, start: int) -> Ids:
        """What is read where text of no message begins or ends, and nothing is left out."""
        to = self._place(start)
        return self.format.text.opening if to.kind == TEXT else self.format.text.closing

    def _opening(self, place: _Place) -> Ids:
        """What has to be read before a stretch begins at ``place``."""
        kind = self.format.kind(place.kind)
        if place.inside < 0:
            return kind.opening
        if place.opens or place.kind == TEXT:
            return kind.opening[: place.inside] if place.opens else kind.opening[:0]
        return np.concatenate([kind.opening, kind.closing[: place.inside]])

    def _closing(self, place: _Place, token: int) -> Ids:
        """What has to be read behind a stretch that ends before ``token``, which is at ``place``."""
        kind = self.format.kind(place.kind)
        if place.inside == 0 and place.opens:
            before = replace(place, event=place.event - 1, kind=TEXT, opens=False, inside=-1)
            return self._closing(before, token)
        if place.kind == TEXT:
            return kind.closing if self._text_stands(place, token) else kind.closing[:0]
        if place.opens:
            return np.concatenate(
                [kind.opening[place.inside :] if place.inside > 0 else kind.opening[:0], kind.closing]
            )
        return kind.closing[place.inside :]

    def _text_stands(self, place: _Place, token: int) -> bool:
        """Whether text of no message, which goes on at ``place``, stands before ``token``."""
        if place.event < 0:
            return token > self.format.begin
        at, length = int(self._at[place.event]), int(self._length[place.event])
        return not self._opens[place.event] and token > at + length


def within(frames: Sequence[Frame], room: int) -> list[Frame]:
    """The newest frames that ``room`` tokens hold."""
    total = np.cumsum([len(frame.ids) for frame in reversed(frames)])
    kept = int(np.searchsorted(total, room, side="right"))
    return list(frames[len(frames) - kept :])

"""Frames: whatever a working context leaves out, the model reads a conversation in its template's own form."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mc_core.context.entries import Entries
from mc_core.context.frames import Frame, MessageIndex, MessageKind, ReadingFormat, within

BEGIN, OPEN, CLOSE, LINE, INTRODUCTION, GAP = 1, 2, 3, 13, 40, 41
ROLES = (10, 11, 12)
CONTENT = 100
"""Content is made of its own places: token i of the history is CONTENT + i."""


def ids(*tokens: int) -> np.ndarray:
    return np.array(tokens, np.int32)


KINDS = tuple(
    MessageKind(role, ids(OPEN, token, LINE), ids(CLOSE, LINE), mark=2)
    for role, token in zip(("system", "user", "assistant"), ROLES, strict=True)
)
TEXT = MessageKind("text", ids(OPEN, ROLES[1], LINE, INTRODUCTION), ids(CLOSE, LINE), mark=2)
FORMAT = ReadingFormat(KINDS, TEXT, ids(GAP), begin=1)
BLOCK = 4


@dataclass(frozen=True)
class Talk:
    """A history, and of each of its tokens the stretch that it is content of, -1 for the template's own."""

    history: np.ndarray
    stretch: np.ndarray
    kinds: tuple[int, ...]  # of the stretches; 3 is text of no message


@st.composite
def talks(draw: st.DrawFn) -> Talk:
    """Messages and texts in any order, the last one an open reply."""
    stretches = draw(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 21)), max_size=8))
    history, owner, kinds = [BEGIN], [-1], []
    for kind, length in [*((k, n) for k, n in stretches if k < 3 or n), (2, draw(st.integers(0, 9)))]:
        if kind == 3 and kinds and kinds[-1] == 3:
            continue  # two texts in a row are one
        opening = [] if kind == 3 else KINDS[kind].opening.tolist()
        history += opening
        owner += [-1] * len(opening)
        history += [CONTENT + len(history) + i for i in range(length)]
        owner += [len(kinds)] * length
        closing = [] if kind == 3 else KINDS[kind].closing.tolist()
        history += closing
        owner += [-1] * len(closing)
        kinds.append(kind)
    end = len(history) - len(KINDS[2].closing)  # the reply is open
    return Talk(ids(*history[:end]), np.array(owner[:end]), tuple(kinds))


def shown(talk: Talk, raw: np.ndarray, frames: list[Frame]) -> list[int]:
    """What the model reads."""
    before = {frame.before: frame.ids.tolist() for frame in frames}
    tokens = np.flatnonzero(np.repeat(raw, BLOCK)[: len(talk.history)])
    return [one for at in tokens.tolist() for one in (*before.get(at, []), int(talk.history[at]))]


def entries_of(talk: Talk, raw: np.ndarray) -> Entries:
    """Each block by itself, raw or hidden."""
    levels = np.where(raw, 0, 1).astype(np.int8)
    return Entries.fresh(BLOCK, len(talk.history), levels, np.arange(len(raw), dtype=np.int64))


@given(talks(), st.data())
def test_what_is_shown_reads_as_a_conversation(talk: Talk, data: st.DataObject) -> None:
    """Every content stands in a message of its own kind, opened and closed once, and gaps tell what is left out."""
    blocks = -(-len(talk.history) // BLOCK)
    raw = np.array(data.draw(st.lists(st.booleans(), min_size=blocks, max_size=blocks)))
    raw[[0, -1]] = True
    index = MessageIndex(FORMAT)
    index.append(talk.history)
    read = shown(talk, raw, index.frames(entries_of(talk, raw)))
    assert read.pop(0) == BEGIN
    openings = [*(kind.opening.tolist() for kind in KINDS), TEXT.opening.tolist()]
    opened: int | None = None
    last: int | None = None  # the content's token before
    gap = False
    while read:
        if opened is None:
            opened = max((k for k, o in enumerate(openings) if read[: len(o)] == o), key=lambda k: len(openings[k]))
            assert read[: len(openings[opened])] == openings[opened]
            del read[: len(openings[opened])]
            last, gap = None, False
        elif read[0] == CLOSE:
            assert read[:2] == [CLOSE, LINE]
            del read[:2]
            opened = None
        elif read[0] == GAP:
            assert not gap
            gap = bool(read.pop(0))
        else:
            at = read.pop(0) - CONTENT
            assert talk.kinds[talk.stretch[at]] == opened
            if last is not None:
                assert talk.stretch[last] == talk.stretch[at]
                assert gap == (at != last + 1)
            last, gap = at, False
    assert opened == 2


@given(talks(), st.data())
def test_the_index_is_the_same_however_the_history_came(talk: Talk, data: st.DataObject) -> None:
    """Parts of any size, and cuts that are written again, lead to the same beginnings and ends of messages."""
    whole = MessageIndex(FORMAT)
    whole.append(talk.history)
    index = MessageIndex(FORMAT)
    for size, cut in data.draw(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 30)), max_size=8)):
        index.append(talk.history[index.tokens : index.tokens + size])
        position = max(0, index.tokens - cut)
        known = data.draw(st.integers(min(position, index.reach), position))
        index.rewind(position, talk.history[position - known : position])
    index.append(talk.history[index.tokens :])
    raw = np.zeros(-(-len(talk.history) // BLOCK), bool)
    raw[::2], raw[-1] = True, True
    entries = entries_of(talk, raw)
    told = [[(frame.before, frame.ids.tolist()) for frame in one.frames(entries)] for one in (whole, index)]
    assert told[0] == told[1] and len(whole) == len(index)


@given(talks())
def test_what_is_shown_whole_has_no_frames_but_around_texts(talk: Talk) -> None:
    """A conversation that fits is read as its template writes it."""
    index = MessageIndex(FORMAT)
    index.append(talk.history)
    frames = index.frames(entries_of(talk, np.ones(-(-len(talk.history) // BLOCK), bool)))
    assert len(frames) == 2 * talk.kinds.count(3)


def test_outside_of_a_conversation_nothing_is_framed() -> None:
    """A completion reads on behind text, with nothing between."""
    index = MessageIndex(FORMAT)
    history = ids(BEGIN, *range(CONTENT, CONTENT + 30))
    index.append(history)
    raw = np.array([True, False, True, False, False, True, False, True])
    assert index.frames(entries_of(Talk(history, history * 0, (3,)), raw)) == []


@pytest.mark.parametrize(("room", "left"), [(0, 0), (1, 0), (2, 1), (4, 1), (5, 2), (9, 3)])
def test_the_newest_frames_stay_where_there_is_no_room_for_all(room: int, left: int) -> None:
    """Frames never take more than their room, and none is cut."""
    frames = [Frame(8, ids(1, 2, 3)), Frame(16, ids(4, 5, 6)), Frame(40, ids(7, 8))]
    assert within(frames, room) == frames[3 - left :]

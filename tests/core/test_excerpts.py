"""Excerpts: whatever a working context leaves out, the model reads a conversation in its template's own form."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mc_core.context.excerpts import Excerpt, Excerpts, Frame, within
from mc_core.context.reading_format import MessageKind, ReadingFormat
from mc_core.context.sources import UNTITLED, About, Sources
from mc_core.context.working_context import Edit, Plan, WorkingContext
from mc_core.models.words import Words

BEGIN, OPEN, CLOSE, LINE, INTRODUCTION, GAP, TITLES = 1, 2, 3, 13, 40, 41, 50
ROLES = (10, 11, 12)
CONTENT = 100
"""Content is made of its own places: token i of the history is CONTENT + i."""


def ids(*tokens: int) -> np.ndarray:
    return np.array(tokens, np.int32)


KINDS = tuple(
    MessageKind(role, ids(OPEN, token, LINE), ids(CLOSE, LINE), mark=2)
    for role, token in zip(("system", "user", "assistant"), ROLES, strict=True)
)


def text(about: About) -> MessageKind:
    """What is read around a text: its title is one token."""
    title = [] if about.title is None else [TITLES + int(about.title)]
    return MessageKind("text", ids(OPEN, ROLES[1], LINE, INTRODUCTION, *title), ids(CLOSE, LINE), mark=2)


FORMAT = ReadingFormat(KINDS, text, ids(GAP), begin=1)
BLOCK = 4
STOPS = np.arange(4096) % 7 == 3
"""Every seventh token of content ends a sentence."""
STOPS[:CONTENT] = False
ASKS = STOPS & (np.arange(4096) % 2 == 0)
NONE = np.zeros(4096, bool)
WORDS = Words(np.arange(4096, dtype=np.int32), STOPS, STOPS, NONE, ASKS)


@dataclass(frozen=True)
class Talk:
    """A history, and of each of its tokens the stretch that it is content of, -1 for the template's own."""

    history: np.ndarray
    stretch: np.ndarray
    kinds: tuple[int, ...]  # of the stretches; 3 is text of no message
    abouts: tuple[About, ...] = ()  # of the stretches
    sources: Sources = Sources()  # noqa: RUF009 - never changed


@st.composite
def talks(draw: st.DrawFn) -> Talk:
    """Messages and texts in any order, some with titles, the last one an open reply."""
    stretches = draw(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 21)), max_size=8))
    history, owner, kinds, abouts, sources = [BEGIN], [-1], [], [], Sources()
    for kind, length in [*((k, n) for k, n in stretches if k < 3 or n), (2, draw(st.integers(0, 9)))]:
        about = About(str(len(kinds))) if draw(st.booleans()) else UNTITLED
        if kind == 3 and kinds and kinds[-1] == 3 and abouts[-1] == about:
            continue  # two texts without a title in a row are one
        if kind == 3:
            sources = sources.marked(len(history) - (len(history) == 1), about)
        opening = [] if kind == 3 else KINDS[kind].opening.tolist()
        history += opening
        owner += [-1] * len(opening)
        history += [CONTENT + len(history) + i for i in range(length)]
        owner += [len(kinds)] * length
        closing = [] if kind == 3 else KINDS[kind].closing.tolist()
        history += closing
        owner += [-1] * len(closing)
        kinds.append(kind)
        abouts.append(about)
        if draw(st.booleans()):
            sources = sources.marked(len(history), UNTITLED)
    end = len(history) - len(KINDS[2].closing)  # the reply is open
    return Talk(ids(*history[:end]), np.array(owner[:end]), tuple(kinds), tuple(abouts), sources)


def context_of(talk: Talk, raw: np.ndarray) -> WorkingContext:
    """A working context in which the blocks that are not ``raw`` are collapsed, as far as they may be."""
    wc = WorkingContext(BLOCK, 1 << 20, recent_tokens=1, gist_cost=0)
    wc.extend(len(talk.history))
    kept = wc.protection.pinned(np.arange(len(raw))) | (np.arange(len(raw)) >= wc.tail_start // BLOCK)
    edits = tuple(Edit("collapse", 1, block) for block in np.flatnonzero(~raw & ~kept).tolist())
    wc.commit(Plan(edits, wc.num_tokens))
    return wc


def excerpts_of(talk: Talk) -> Excerpts:
    excerpts = Excerpts(FORMAT, WORDS, BLOCK)
    excerpts.append(talk.history)
    return excerpts


def raw_tokens(wc: WorkingContext) -> list[int]:
    raw = wc.levels == 0
    return [at for start, end in zip(wc.starts()[raw], wc.ends()[raw], strict=True) for at in range(start, end)]


def order_of(wc: WorkingContext, excerpt: Excerpt) -> list[int]:
    """The tokens of the history as they are read."""
    tokens = [at for at in raw_tokens(wc) if excerpt.shows(at, at + 1)]
    if excerpt.moved is None:
        return tokens
    start, end, before = excerpt.moved
    place = list(range(start, end))
    others = [at for at in tokens if at not in place]
    to = others.index(before)
    return [*others[:to], *place, *others[to:]]


def read_of(talk: Talk, wc: WorkingContext, excerpt: Excerpt) -> list[int]:
    """What the model reads."""
    before = {frame.before: frame.ids.tolist() for frame in excerpt.frames}
    tokens = order_of(wc, excerpt)
    return [one for at in tokens for one in (*before.get(at, []), int(talk.history[at]))]


def some_blocks(data: st.DataObject, talk: Talk) -> np.ndarray:
    count = -(-len(talk.history) // BLOCK)
    return np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))


@settings(deadline=None)
@given(talks(), st.data())
def test_what_is_shown_reads_as_a_conversation(talk: Talk, data: st.DataObject) -> None:
    """Every content stands in a message of its own kind, opened and closed once, and gaps tell what is left out."""
    wc = context_of(talk, some_blocks(data, talk))
    asked = None if data.draw(st.booleans()) else np.flatnonzero(some_blocks(data, talk))
    best = data.draw(st.none() | st.sampled_from(np.unique(np.array(raw_tokens(wc)) // BLOCK).tolist()))
    read = read_of(talk, wc, excerpts_of(talk).of(wc, 1 << 20, talk.sources, asked, best))
    assert read.pop(0) == BEGIN
    titles = [UNTITLED, *(About(str(number)) for number in range(len(talk.kinds)))]
    openings = [*(kind.opening.tolist() for kind in KINDS), *(text(about).opening.tolist() for about in titles)]
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
            assert talk.kinds[talk.stretch[at]] == min(opened, 3)
            assert opened < 3 or talk.abouts[talk.stretch[at]] == titles[opened - 3]
            if last is not None:
                assert talk.stretch[last] == talk.stretch[at]
                assert gap == (at != last + 1)
            last, gap = at, False
    assert opened == 2


@settings(deadline=None)
@given(talks(), st.data())
def test_what_is_left_out_is_parts_of_sentences_alone(talk: Talk, data: st.DataObject) -> None:
    """Of a place, only what comes before its first whole sentence and behind its last one is not read."""
    wc = context_of(talk, some_blocks(data, talk))
    raw = set(raw_tokens(wc))
    ends = {at for at, token in enumerate(talk.history) if STOPS[token] or token == LINE}
    begins = {at + 1 for at in ends} | {at for at, token in enumerate(talk.history) if token == OPEN}
    borders = np.flatnonzero((np.diff(talk.stretch) != 0) & (talk.stretch[1:] >= 0) & (talk.stretch[:-1] >= 0))
    begins |= set((borders + 1).tolist())
    ends |= set(borders.tolist())
    for start, end in excerpts_of(talk).of(wc, 1 << 20, talk.sources).left_out:
        assert end - start < 2 * BLOCK
        assert raw >= set(range(start, end))
        assert start >= BLOCK
        assert end <= wc.tail_start
        if start - 1 in raw:  # the end of a place
            assert end not in raw
            assert not ends & set(range(start, end - 1)) or start in begins or start - 1 in ends
        else:
            assert end in begins or end - 1 in ends
            assert start not in begins


def users_turns(talk: Talk) -> list[int]:
    """Where messages of the user begin."""
    opens = (talk.history[:-1] == OPEN) & (talk.history[1:] == ROLES[1])
    return np.flatnonzero(opens).tolist()


@settings(deadline=None)
@given(talks(), st.data())
def test_what_nobody_asked_for_is_read_whole_or_not_at_all(talk: Talk, data: st.DataObject) -> None:
    """Blocks that were asked for are read as ever; beside them the first block, and what the tail alone holds before
    the last question, are left out; nothing else is."""
    wc = context_of(talk, some_blocks(data, talk))
    raw = np.unique(np.array(raw_tokens(wc)) // BLOCK)
    asked = raw[np.array(data.draw(st.lists(st.booleans(), min_size=len(raw), max_size=len(raw))))]
    excerpts = excerpts_of(talk)
    whole = excerpts.of(wc, 1 << 20, talk.sources)
    told = excerpts.of(wc, 1 << 20, talk.sources, asked)
    more = set(told.left_out) - set(whole.left_out)
    raw_at = set(raw_tokens(wc))
    for start, end in more:
        assert not set(range(start // BLOCK, (end - 1) // BLOCK + 1)) & set(asked.tolist())
        assert start - 1 not in raw_at or start == FORMAT.begin
        if start == FORMAT.begin:
            assert end == BLOCK
            assert end not in raw_at
        else:
            assert start == wc.tail_start
            assert end == users_turns(talk)[-1]
    if not len(asked) and BLOCK not in raw_at and wc.tail_start >= BLOCK and (whole.frames or whole.left_out):
        assert (FORMAT.begin, BLOCK) in told.left_out


@settings(deadline=None)
@given(talks(), st.data())
def test_the_best_place_is_read_right_before_the_question(talk: Talk, data: st.DataObject) -> None:
    """It alone changes its place, with the sentences that it is a part of, and only if a question stands behind it and
    something is folded away."""
    wc = context_of(talk, some_blocks(data, talk))
    best = data.draw(st.sampled_from(np.unique(np.array(raw_tokens(wc)) // BLOCK).tolist()))
    excerpts = excerpts_of(talk)
    plain, told = (excerpts.of(wc, 1 << 20, talk.sources, None, block) for block in (None, best))
    assert plain.left_out == told.left_out
    before, after, question = order_of(wc, plain), order_of(wc, told), users_turns(talk)[-1:]
    block = [at for at in before if at // BLOCK == best]
    stands = question and question[0] in before and block and (best + 1) * BLOCK <= min(question[0], wc.tail_start)
    if told.moved is None:
        assert before == after
        near = stands and all(at // BLOCK <= best + 1 for at in before[: before.index(question[0])])
        assert (
            not stands
            or near
            or not wc.levels.any()
            or wc.protection.pinned(np.arange(max(0, best - 1), best + 2)).any()
        )
        return
    start, end, to = told.moved
    assert stands
    assert wc.levels.any()
    assert [to] == question
    assert set(block) <= set(range(start, end))
    assert after[after.index(to) - 1] == end - 1
    assert sorted(after) == before != after
    assert [at for at in after if not start <= at < end] == [at for at in before if not start <= at < end]
    around = [*range(start, best * BLOCK), *range((best + 1) * BLOCK, end - 1)]
    assert not any(STOPS[talk.history[at]] for at in around)
    assert not {OPEN} & {int(talk.history[at]) for at in (*around, end - 1) if at // BLOCK != best and at != start}


@settings(deadline=None)
@given(talks())
def test_questions_are_found_by_their_mark(talk: Talk) -> None:
    """Messages of the user's that are closed, end with one, and hold no other sentence: who says something and then
    asks has said it."""
    told = []
    for start in users_turns(talk):
        end = start + int(np.argmax(talk.history[start:] == CLOSE))
        content = talk.history[start + len(KINDS[1].opening) : end]
        if len(content) and ASKS[content[-1]] and not STOPS[content[:-1]].any():
            told.append([start, end])
    assert excerpts_of(talk).messages.questions().tolist() == told


@settings(deadline=None)
@given(talks(), st.data())
def test_an_excerpt_is_the_same_however_the_history_came(talk: Talk, data: st.DataObject) -> None:
    """Parts of any size, and cuts that are written again, lead to the same excerpt."""
    excerpts = Excerpts(FORMAT, WORDS, BLOCK)
    tokens = 0
    for size, cut in data.draw(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 30)), max_size=8)):
        excerpts.append(talk.history[tokens : tokens + size])
        tokens = max(0, min(len(talk.history), tokens + size) - cut)
        known = data.draw(st.integers(min(tokens, excerpts.reach), tokens))
        excerpts.rewind(tokens, talk.history[tokens - known : tokens])
    excerpts.append(talk.history[tokens:])
    wc = context_of(talk, some_blocks(data, talk))
    told = [
        ([(frame.before, frame.ids.tolist()) for frame in excerpt.frames], excerpt.left_out)
        for excerpt in (made.of(wc, 1 << 20, talk.sources) for made in (excerpts, excerpts_of(talk)))
    ]
    assert told[0] == told[1]
    assert excerpts.messages.questions().tolist() == excerpts_of(talk).messages.questions().tolist()


@settings(deadline=None)
@given(talks(), st.data())
def test_right_after_a_cut_an_excerpt_is_that_of_what_is_left(talk: Talk, data: st.DataObject) -> None:
    """What stood behind a cut frames nothing any more, and what it cut in two is read as far as it stands."""
    position = data.draw(st.integers(2, len(talk.history)))
    left = Talk(talk.history[:position], talk.stretch[:position], talk.kinds, talk.abouts, talk.sources.cut(position))
    wc = context_of(left, some_blocks(data, left))
    excerpts = excerpts_of(talk)
    excerpts.rewind(position, left.history[max(0, position - excerpts.reach) :])
    told = [
        ([(frame.before, frame.ids.tolist()) for frame in excerpt.frames], excerpt.left_out)
        for excerpt in (made.of(wc, 1 << 20, left.sources) for made in (excerpts, excerpts_of(left)))
    ]
    assert told[0] == told[1]


@settings(deadline=None)
@given(talks(), st.data())
def test_what_is_shown_whole_has_no_frames_but_around_texts(talk: Talk, data: st.DataObject) -> None:
    """A conversation that fits is read as its template writes it."""
    wc = context_of(talk, np.ones(-(-len(talk.history) // BLOCK), bool))
    asked = None if data.draw(st.booleans()) else np.empty(0, np.int64)
    excerpt = excerpts_of(talk).of(wc, 1 << 20, talk.sources, asked)
    is_text = np.array(talk.kinds) == 3
    runs = int((is_text & ~np.append(False, is_text[:-1])).sum())
    assert len(excerpt.frames) == is_text.sum() + runs
    assert not excerpt.left_out


def test_a_chat_within_the_tail_is_read_whole() -> None:
    """Old talk is left out behind something that is folded away alone: a chat that all stands in the tail is whole."""
    turns = [[OPEN, ROLES[role], LINE, CONTENT, CLOSE, LINE] for role in (1, 2, 1)]
    history = ids(BEGIN, *(token for turn in turns for token in turn), OPEN, ROLES[2], LINE)
    talk = Talk(history, np.zeros(len(history), int), ())
    wc = WorkingContext(BLOCK, 1 << 20, recent_tokens=100, gist_cost=0)
    wc.extend(len(history))
    excerpt = excerpts_of(talk).of(wc, 1 << 20, asked=np.empty(0, np.int64))
    assert (excerpt.frames, excerpt.left_out) == ((), ())


def test_outside_of_a_conversation_all_is_read_as_it_is() -> None:
    """A completion reads on behind text, with nothing between."""
    talk = Talk(ids(BEGIN, *range(CONTENT, CONTENT + 30)), np.zeros(31, int), (3,))
    wc = context_of(talk, np.array([True, False, True, False, False, True, False, True]))
    excerpt = excerpts_of(talk).of(wc, 1 << 20)
    assert not excerpt.frames
    assert not excerpt.left_out


@pytest.mark.parametrize(("room", "left"), [(0, 0), (1, 0), (2, 1), (4, 1), (5, 2), (9, 3)])
def test_the_newest_frames_stay_where_there_is_no_room_for_all(room: int, left: int) -> None:
    """Frames never take more than their room, and none is cut."""
    frames = [Frame(8, ids(1, 2, 3)), Frame(16, ids(4, 5, 6)), Frame(40, ids(7, 8))]
    assert within(frames, room) == frames[3 - left :]


def test_gaps_give_way_to_what_opens_and_closes() -> None:
    """Where there is no room for all frames, the oldest gaps go first."""
    gap = ids(GAP)
    frames = [Frame(4, ids(1, 2)), Frame(8, gap), Frame(12, gap), Frame(16, ids(3, 4)), Frame(20, gap)]
    assert within(frames, 7, gap) == frames
    assert within(frames, 6, gap) == [frames[0], *frames[2:]]
    assert within(frames, 4, gap) == [frames[0], frames[3]]
    assert within(frames, 3, gap) == [frames[3]]


def test_a_reply_is_open_once_its_mark_stands() -> None:
    """A template may leave the end of the reply's opening to the model: it is read as with it, and once."""
    history = [BEGIN, *range(CONTENT + 1, CONTENT + 30), OPEN, ROLES[1], LINE, CONTENT + 33, CLOSE, LINE]
    raw = np.array([True, False, False, True, True, False, False, True, True, True, True])
    told = []
    for end in ([OPEN, ROLES[2]], [OPEN, ROLES[2], LINE], [OPEN, ROLES[2], CONTENT + 60]):
        talk = Talk(ids(*history, *end), np.zeros(0), ())
        wc, whole = context_of(talk, raw[: -(-len(talk.history) // BLOCK)]), excerpts_of(talk)
        told.append([(frame.before, frame.ids.tolist()) for frame in whole.of(wc, 1 << 20).frames])
        parts = Excerpts(FORMAT, WORDS, BLOCK)
        for token in talk.history:
            parts.append(ids(token))
        assert [(frame.before, frame.ids.tolist()) for frame in parts.of(wc, 1 << 20).frames] == told[-1]
    assert told[0] == told[1] == told[2] != []

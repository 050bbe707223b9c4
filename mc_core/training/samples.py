"""Training samples as tokens with weights: plain text, recall of planted facts, and copying.

A sample is laid out as a working context is served: the pinned first block, history blocks of one document with gaps
between them, and a tail that holds the newest text and the questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from mc_core.errors import ConfigError
from mc_core.training.cache import Stream
from mc_core.training.chat_format import ChatEncoder
from mc_core.training.facts import KINDS, MAGIC, PERSONAL, Fact, FactKind, make_fact, pick

Ids = NDArray[np.int64]
Weights = NDArray[np.float32]

BLOCK = 32
QUESTION_WEIGHT, ANSWER_WEIGHT, VALUE_WEIGHT, COPY_WEIGHT, STATED_WEIGHT = 0.2, 2.0, 4.0, 2.0, 0.3
ACKNOWLEDGED = ("Okay.", "Okay, I will remember that.", "Got it.", "Noted.", "Thank you, I will keep that in mind.")
REPEAT = ("Repeat this: ", "Repeat after me: ", "Say this again: ", "Copy this text: ")
MAX_TURNS = 4
LOOK_ALIKES = 0.6


@dataclass(frozen=True)
class Layout:
    """length tokens, of which [0, tail_start) are the first block and history, the rest is the tail."""

    length: int
    tail_start: int

    def __post_init__(self) -> None:
        if self.tail_start < BLOCK or self.tail_start % BLOCK or self.tail_start >= self.length:
            raise ConfigError(
                f"tail_start must be a multiple of {BLOCK} in [{BLOCK}, length = {self.length}), got {self.tail_start}"
            )


@dataclass(frozen=True)
class Difficulty:
    """How many facts a recall sample plants and how long their numbers are, both ends included."""

    facts: tuple[int, int] = (1, 4)
    digits: tuple[int, int] = (3, 7)


@dataclass
class Sample:
    """ids [n]; weights [n] of predicting each token; marks [n]: j > 0 on the value tokens of answer j."""

    ids: Ids
    weights: Weights
    marks: NDArray[np.int64]

    @classmethod
    def plain(cls, ids: Sequence[int] | Ids, weight: float = 1.0) -> Sample:
        """Tokens of one weight without marks."""
        n = len(ids)
        return cls(np.asarray(ids, np.int64), np.full(n, weight, np.float32), np.zeros(n, np.int64))

    @classmethod
    def joined(cls, parts: Sequence[Sample]) -> Sample:
        """Parts end to end."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("ids", "weights", "marks")))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: slice | Ids) -> Sample:
        return Sample(self.ids[index], self.weights[index], self.marks[index])


class SampleMaker:
    """Makes samples from streams of text; with ``held_out`` from keys and templates that training never uses."""

    def __init__(
        self,
        streams: Sequence[Stream],
        encoder: ChatEncoder,
        mix: dict[str, float] | None = None,
        held_out: bool = False,
    ) -> None:
        """mix: share by stream name (others get none); by default a stream counts by the square root of its size."""
        self.streams, self.encoder, self.held_out = list(streams), encoder, held_out
        unknown = set(mix or ()) - {stream.name for stream in streams}
        if unknown:
            raise ConfigError(f"mix: no such file in the corpus: {sorted(unknown)}")
        sizes = np.array([len(s) ** 0.5 if mix is None else mix.get(s.name, 0.0) for s in streams], np.float64)
        if not sizes.sum() > 0:
            raise ConfigError("mix: at least one file needs a share above 0")
        self.shares = sizes / sizes.sum()
        self.chats = np.array([stream.chat for stream in streams])

    def text(self, rng: Generator, layout: Layout) -> Sample:
        """Plain text of ``layout.length`` tokens; its history often has gaps."""
        stream = self._stream(rng)
        return self._with_gaps(rng, Sample.plain(self._window(rng, stream, self._span(rng, layout, 0))), [], layout)

    def copy(self, rng: Generator, layout: Layout) -> Sample | None:
        """Plain text, then a request to repeat some tokens, and the repetition; None if the tail is too short."""
        opening, closing = self.encoder.opening("user"), self.encoder.closing()
        request = self.encoder.text(REPEAT[int(rng.integers(len(REPEAT)))])
        frame = len(opening) + len(request) + 2 * len(closing) + len(self.encoder.opening("assistant"))
        room = (layout.length - layout.tail_start - frame) // 2
        if room < 4:
            return None
        count = int(rng.integers(4, max(5, min(room, 48))))
        span = self._copied(rng, count)
        asked = Sample.plain([*opening, *request, *span, *closing, *self.encoder.opening("assistant")], QUESTION_WEIGHT)
        answer = Sample.plain([*span, *closing], COPY_WEIGHT)
        answer.marks[: len(span)] = 1
        turns = Sample.joined([asked, answer])
        before = self.text(rng, layout)[: layout.length - len(turns)]
        return Sample.joined([before, turns])

    def recall(
        self,
        rng: Generator,
        layout: Layout,
        difficulty: Difficulty,
        kinds: Sequence[FactKind] | None = None,
        turns: int | None = None,
        style: float | None = None,
    ) -> tuple[Sample, list[Fact]] | None:
        """Facts planted in text, questions in the tail; also returns the facts asked for, in order of the questions.

        kinds, turns (questions at most) and style (see ``_plant``) are drawn at random if not given. None if no
        question fits the tail, or its fact the rest, which happens where a layout is short or words are many tokens.
        """
        facts = self._facts(rng, difficulty, kinds)
        style = float(rng.random()) if style is None else style
        for limit in (turns or int(rng.integers(1, MAX_TURNS + 1)), 1):
            dialogue, asked = self._turns(facts, limit, layout.length - layout.tail_start - 2)
            if layout.length - len(dialogue) <= layout.tail_start:
                return None
            room = Layout(layout.length - len(dialogue), layout.tail_start)
            planted = self._plant(rng, facts, len(asked), self._span(rng, room, len(asked)), style)
            if planted is not None:
                body, places = planted
                return Sample.joined([self._with_gaps(rng, body, places, room), dialogue]), asked
            style = 1.0
        return None

    def drill(self, rng: Generator, length: int, difficulty: Difficulty) -> Sample:
        """Nothing but a few facts and at once their questions, again and again, to ``length`` tokens.

        Copying is learned from such dense sequences within some hundred thousand tokens; with text between the facts
        ten times as many taught nothing.
        """
        parts: list[Sample] = []
        total = mark = 0
        while total < length:
            facts = self._facts(rng, difficulty, None)
            stated = [Sample.plain(self._stated(rng, fact, False), STATED_WEIGHT) for fact in facts]
            asked = [self._turn(facts[i], mark + n + 1) for n, i in enumerate(rng.permutation(len(facts)))]
            mark += len(facts)
            parts += [*stated, *asked]
            total = sum(map(len, parts))
        return Sample.joined(parts)[:length]

    def _facts(self, rng: Generator, difficulty: Difficulty, kinds: Sequence[FactKind] | None) -> list[Fact]:
        """Distinct facts; half of the time all of one kind, so that only the key tells them apart.

        Often their keys are look-alikes: the lens opens blocks for their words, so most wrong facts in view
        share a word with the right one.
        """
        count = int(rng.integers(difficulty.facts[0], difficulty.facts[1] + 1))
        pool = list(kinds or (KINDS if rng.random() < 0.8 else KINDS + PERSONAL + PERSONAL))
        if kinds is None and rng.random() < 0.5:
            pool = [MAGIC] if rng.random() < 0.5 else [pool[int(rng.integers(len(pool)))]]
        alike = rng.random() < LOOK_ALIKES
        found: dict[str, Fact] = {}
        for _ in range(2 * count):
            kind = pool[int(rng.integers(len(pool)))]
            near = self._near(rng, kind, list(found.values())) if alike else None
            fact = make_fact(rng, kind, difficulty.digits, self.held_out, near)
            found.setdefault(fact.question, fact)
            if len(found) == count:
                break
        # Two facts without a key, or two templates of one question, would make an answer ambiguous.
        single = {fact.kind: fact for fact in found.values() if fact.kind.startswith("my_") or fact.kind == "pass_key"}
        return [fact for fact in found.values() if single.get(fact.kind, fact) is fact]

    def _near(self, rng: Generator, kind: FactKind, facts: list[Fact]) -> str | None:
        """The key of one of the facts of a kind, if there are any."""
        keys = [fact.key for fact in facts if fact.kind == kind.name]
        return pick(rng, keys) if keys else None

    def _turns(self, facts: list[Fact], limit: int, room: int) -> tuple[Sample, list[Fact]]:
        """Turns that ask for the first ``limit`` facts, or fewer if they do not fit into ``room`` tokens; one at least.

        Also returns the facts that are asked for.
        """
        parts: list[Sample] = []
        for fact in facts[:limit]:
            turn = self._turn(fact, len(parts) + 1)
            if parts and len(turn) > room:
                break
            parts.append(turn)
            room -= len(turn)
        return Sample.joined(parts), facts[: len(parts)]

    def _turn(self, fact: Fact, mark: int) -> Sample:
        question = [*self.encoder.turn("user", fact.question), *self.encoder.opening("assistant")]
        return Sample.joined([Sample.plain(question, QUESTION_WEIGHT), self.answer(fact, mark)])

    def answer(self, fact: Fact, mark: int) -> Sample:
        """The answer and the end of its turn, value tokens weighted and marked."""
        encoding = self.encoder.tokenizer.encode(fact.answer, add_special_tokens=False)
        start = fact.answer.rindex(fact.value)
        end = start + len(fact.value)
        sample = Sample.plain([*encoding.ids, *self.encoder.closing()], ANSWER_WEIGHT)
        inside = [i for i, (a, b) in enumerate(encoding.offsets) if a < end and b > start]
        sample.weights[inside], sample.marks[inside] = VALUE_WEIGHT, mark
        return sample

    def _plant(
        self, rng: Generator, facts: list[Fact], asked: int, span: int, style: float
    ) -> tuple[Sample, list[tuple[int, int]]] | None:
        """Text of ``span`` tokens with the facts at random offsets; the ranges of the first ``asked`` of them.

        style: below 0.15 a haystack of nothing but facts, below 0.5 a dialogue, prose above. None if it cannot fit.
        """
        chat = 0.15 <= style < 0.5
        stated = [self._stated(rng, fact, chat) for fact in facts]
        room = span - sum(map(len, stated))
        while room < 0 and len(stated) > asked:
            room += len(stated.pop())
        if room < 0:
            return None
        if style < 0.15:
            stated += self._distractors(rng, facts, room)
        filler = self._window(rng, self._stream(rng, chat), max(0, span - sum(map(len, stated))))
        offsets = self._offsets(rng, filler, len(stated), chat)
        body, ranges = _interleaved(filler, stated, offsets)
        return Sample.plain(body), ranges[:asked]

    def _distractors(self, rng: Generator, facts: list[Fact], room: int) -> list[Ids]:
        """More facts of the same kinds, other keys, as many as fit into ``room`` tokens."""
        kinds = [kind for kind in KINDS if kind.name != "pass_key" and any(kind.name == fact.kind for fact in facts)]
        taken, stated = {fact.question for fact in facts}, []
        while kinds and room > 0:
            kind = kinds[int(rng.integers(len(kinds)))]
            near = self._near(rng, kind, facts) if rng.random() < LOOK_ALIKES else None
            more = make_fact(rng, kind, (3, 7), self.held_out, near)
            if more.question not in taken:
                stated.append(self._stated(rng, more, False))
                room -= len(stated[-1])
        return stated[:-1]

    def _stated(self, rng: Generator, fact: Fact, chat: bool) -> Ids:
        if not chat:
            before = "\n" if rng.random() < 0.3 else " "
            return np.array(self.encoder.text(before + fact.stated), np.int64)
        reply = ACKNOWLEDGED[int(rng.integers(len(ACKNOWLEDGED)))]
        return np.array(self.encoder.turn("user", fact.stated) + self.encoder.turn("assistant", reply), np.int64)

    def _offsets(self, rng: Generator, filler: Ids, count: int, chat: bool) -> Ids:
        """Where in the filler each fact goes: anywhere in prose, between turns in a dialogue."""
        places = np.flatnonzero(filler == self.encoder.turn_start) if chat else np.arange(len(filler) + 1)
        if not len(places):
            places = np.arange(len(filler) + 1)
        return places[rng.integers(0, len(places), count)]

    def _span(self, rng: Generator, layout: Layout, asked: int) -> int:
        """Tokens of document that the context is cut from: half of the time more than it can show.

        Only if all blocks of ``asked`` facts (up to three each) can be shown.
        """
        blocks = layout.tail_start // BLOCK
        hidden = int(rng.integers(0, 3 * blocks + 1)) if blocks >= 3 * asked + 2 and rng.random() < 0.5 else 0
        return layout.length + hidden * BLOCK

    def _with_gaps(self, rng: Generator, body: Sample, places: list[tuple[int, int]], layout: Layout) -> Sample:
        """Show the first block, ``places`` with their neighbours and random runs of blocks; hide the rest."""
        hidden = (len(body) - layout.length) // BLOCK
        if hidden <= 0:
            return body[: layout.length]
        total, shown = layout.tail_start // BLOCK + hidden, layout.tail_start // BLOCK
        score = np.repeat(rng.random(total // 3 + 1), 3)[:total]
        score[0] = 4.0
        for start, end in places:
            a, b = start // BLOCK, (end - 1) // BLOCK
            score[max(0, a - 1) : b + 2] = np.maximum(score[max(0, a - 1) : b + 2], 2.0)
            score[a : b + 1] = np.maximum(score[a : b + 1], 3.0)
        kept = np.sort(np.argsort(-score, kind="stable")[:shown])
        index = (kept[:, None] * BLOCK + np.arange(BLOCK)).ravel()
        picked = body[np.concatenate([index, np.arange(total * BLOCK, len(body))])]
        # The first token after a gap cannot be foretold.
        jumps = np.flatnonzero(np.diff(kept, append=total) > 1) + 1
        picked.weights[jumps[jumps * BLOCK < len(picked)] * BLOCK] = 0.0
        return picked

    def _copied(self, rng: Generator, count: int) -> list[int]:
        if rng.random() < 0.4:
            digits = "".join(str(d) for d in rng.integers(0, 10, count))
            return self.encoder.text(digits)
        span = self._window(rng, self._stream(rng, chat=False), count)
        return span[span != self.encoder.end_of_text].tolist() or self.encoder.text("nothing")

    def _stream(self, rng: Generator, chat: bool | None = None) -> Stream:
        """A stream by its share; of dialogues or texts alone if ``chat`` says so and the corpus has any."""
        shares = self.shares if chat is None else self.shares * (self.chats == chat)
        shares = shares if shares.sum() else self.shares
        return self.streams[int(rng.choice(len(self.streams), p=shares / shares.sum()))]

    def _window(self, rng: Generator, stream: Stream, count: int) -> Ids:
        """Tokens of one stream, a dialogue from its start on, a text from anywhere; repeated if it is too short."""
        if stream.chat or rng.random() < 0.1:
            start = int(stream.offsets[int(rng.integers(len(stream.offsets) - 1))])
        else:
            start = int(rng.integers(len(stream)))
        start = max(0, min(start, len(stream) - count))
        window = stream.ids[start : start + count].astype(np.int64)
        return window if len(window) == count else np.resize(window, count)


def _interleaved(filler: Ids, stated: list[Ids], offsets: Ids) -> tuple[Ids, list[tuple[int, int]]]:
    """Insert ``stated[i]`` into the filler before token ``offsets[i]``; also where each then stands."""
    parts: list[Ids] = []
    ranges = [(0, 0)] * len(stated)
    at = done = 0
    for i in np.argsort(offsets, kind="stable"):
        parts += [filler[done : offsets[i]], stated[i]]
        at += int(offsets[i]) - done
        ranges[i] = (at, at + len(stated[i]))
        at, done = at + len(stated[i]), int(offsets[i])
    return np.concatenate([*parts, filler[done:]]), ranges

"""Training samples as tokens with weights: plain text, recall of planted facts, and copying.

A sample is laid out as a working context is served: the pinned first block, history blocks of one document with gaps
between them, and a tail that holds the newest text and the questions.
"""

from __future__ import annotations

from collections.abc import Sequence

from numpy.random import Generator

from mc_core.lab.data.arrays import Ints, Range
from mc_core.lab.tasks.facts import KINDS, MAGIC, PERSONAL, Fact, FactKind, make_fact, pick
from mc_core.lab.training.haystack import QUESTION_WEIGHT, STATED_WEIGHT, Haystack
from mc_core.lab.training.sample import Difficulty, Layout, Sample

COPY_WEIGHT = 2.0
REPEAT = ("Repeat this: ", "Repeat after me: ", "Say this again: ", "Copy this text: ")
MAX_TURNS = 4
LOOK_ALIKES = 0.6


class SampleMaker(Haystack):
    """Makes samples from streams of text; with ``held_out`` from keys and templates that training never uses."""

    def text(self, rng: Generator, layout: Layout) -> Sample:
        """Plain text of ``layout.length`` tokens; its history often has gaps."""
        stream = self.stream(rng)
        return self.with_gaps(rng, Sample.plain(self.window(rng, stream, self.span(rng, layout, 0))), [], layout)

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
            planted = self._plant(rng, facts, len(asked), self.span(rng, room, len(asked)), style)
            if planted is not None:
                body, places = planted
                return Sample.joined([self.with_gaps(rng, body, places, room), dialogue]), asked
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
            stated = [Sample.plain(self.statement(rng, fact.stated, False)[0], STATED_WEIGHT) for fact in facts]
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
        found: dict[tuple[str, str], Fact] = {}
        for _ in range(2 * count):
            kind = pool[int(rng.integers(len(pool)))]
            near = self._near(rng, kind, list(found.values())) if alike else None
            fact = make_fact(rng, kind, difficulty.digits, self.held_out, near)
            found.setdefault(fact.about, fact)
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
        return self.turn(fact.question, fact.answer, (fact.value,), mark)

    def answer(self, fact: Fact, mark: int) -> Sample:
        """The answer and the end of its turn, value tokens weighted and marked."""
        return self.reply(fact.answer, (fact.value,), mark)

    def _plant(
        self, rng: Generator, facts: list[Fact], asked: int, span: int, style: float
    ) -> tuple[Sample, list[Range]] | None:
        """Text of ``span`` tokens with the facts at random offsets; the ranges of the first ``asked`` of them.

        style: below 0.15 a haystack of nothing but facts, below 0.5 a dialogue, prose above. None if it cannot fit.
        """
        chat = 0.15 <= style < 0.5
        stated = [self.statement(rng, fact.stated, chat)[0] for fact in facts]
        room = span - sum(map(len, stated))
        while room < 0 and len(stated) > asked:
            room += len(stated.pop())
        if room < 0:
            return None
        if style < 0.15:
            stated += self._distractors(rng, facts, room)
        body, ranges = self.lay(rng, stated, span, chat)
        return Sample.plain(body), ranges[:asked]

    def _distractors(self, rng: Generator, facts: list[Fact], room: int) -> list[Ints]:
        """More facts of the same kinds, other keys, as many as fit into ``room`` tokens."""
        kinds = [kind for kind in KINDS if kind.name != "pass_key" and any(kind.name == fact.kind for fact in facts)]
        taken, stated = {fact.about for fact in facts}, []
        while kinds and room > 0:
            kind = kinds[int(rng.integers(len(kinds)))]
            near = self._near(rng, kind, facts) if rng.random() < LOOK_ALIKES else None
            more = make_fact(rng, kind, (3, 7), self.held_out, near)
            if more.about not in taken:
                stated.append(self.statement(rng, more.stated, False)[0])
                room -= len(stated[-1])
        return stated[:-1]

    def _copied(self, rng: Generator, count: int) -> list[int]:
        if rng.random() < 0.4:
            digits = "".join(str(d) for d in rng.integers(0, 10, count))
            return self.encoder.text(digits)
        span = self.window(rng, self.stream(rng, chat=False), count)
        return span[span != self.encoder.end_of_text].tolist() or self.encoder.text("nothing")

"""A haystack: text of a corpus, statements laid into it, turns that ask for them, and gaps between history blocks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.random import Generator

from mc_core.errors import ConfigError
from mc_core.lab.data.arrays import Ints, Range
from mc_core.lab.data.cache import Stream
from mc_core.lab.data.chat_format import ChatEncoder
from mc_core.lab.data.interleave import interleaved
from mc_core.lab.training.sample import BLOCK, Layout, Sample

STATED_WEIGHT, QUESTION_WEIGHT, ANSWER_WEIGHT, VALUE_WEIGHT = 0.3, 0.2, 2.0, 4.0
ACKNOWLEDGED = ("Okay.", "Okay, I will remember that.", "Got it.", "Noted.", "Thank you, I will keep that in mind.")


class Haystack:
    """Lays statements into streams of text and turns after it; ``held_out`` is for what its users draw."""

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

    def prompt(self, question: str) -> list[int]:
        """The turn that asks, up to where the answer begins."""
        return [*self.encoder.turn("user", question), *self.encoder.opening("assistant")]

    def turn(self, question: str, answer: str, values: Sequence[str], mark: int) -> Sample:
        """A question and its answer."""
        return Sample.joined([Sample.plain(self.prompt(question), QUESTION_WEIGHT), self.reply(answer, values, mark)])

    def reply(self, answer: str, values: Sequence[str], mark: int) -> Sample:
        """The answer and the end of its turn; tokens of the last occurrence of each value are weighted and marked."""
        encoding = self.encoder.tokenizer.encode(answer, add_special_tokens=False)
        sample = Sample.plain([*encoding.ids, *self.encoder.closing()], ANSWER_WEIGHT)
        for value in values:
            start = answer.rindex(value)
            end = start + len(value)
            inside = [i for i, (a, b) in enumerate(encoding.offsets) if a < end and b > start]
            sample.weights[inside], sample.marks[inside] = VALUE_WEIGHT, mark
        return sample

    def statement(self, rng: Generator, text: str, chat: bool) -> tuple[Ints, Range]:
        """A statement as a sentence of prose, or as a turn and what it is answered; where in the ids it stands."""
        if not chat:
            ids = self.encoder.text(("\n" if rng.random() < 0.3 else " ") + text)
            return np.array(ids, np.int64), (0, len(ids))
        reply = ACKNOWLEDGED[int(rng.integers(len(ACKNOWLEDGED)))]
        ids = self.encoder.turn("user", text)
        inside = (len(self.encoder.opening("user")), len(ids) - len(self.encoder.closing()))
        return np.array(ids + self.encoder.turn("assistant", reply), np.int64), inside

    def room(self, statements: Sequence[str], chat: bool) -> int:
        """Tokens that the statements take at most, whatever they are answered."""
        if not chat:
            return sum(max(len(self.encoder.text(lead + text)) for lead in ("\n", " ")) for text in statements)
        reply = max(len(self.encoder.turn("assistant", text)) for text in ACKNOWLEDGED)
        return sum(len(self.encoder.turn("user", text)) + reply for text in statements)

    def offsets(self, rng: Generator, filler: Ints, count: int, chat: bool) -> Ints:
        """Where in the filler each fact goes: anywhere in prose, between turns in a dialogue."""
        places = np.flatnonzero(filler == self.encoder.turn_start) if chat else np.arange(len(filler) + 1)
        if not len(places):
            places = np.arange(len(filler) + 1)
        return places[rng.integers(0, len(places), count)]

    def lay(
        self, rng: Generator, stated: Sequence[Ints], span: int, chat: bool, ordered: bool = False
    ) -> tuple[Ints, list[Range]]:
        """Text with the statements at random places in it, ``span`` tokens in all, and where each stands.

        chat: text of a dialogue. ordered: statements keep their order. Statements may fill the span, not exceed it.
        """
        filler = self.window(rng, self.stream(rng, chat), span - sum(map(len, stated)))
        offsets = self.offsets(rng, filler, len(stated), chat)
        return interleaved(filler, stated, np.sort(offsets) if ordered else offsets)

    def span(self, rng: Generator, layout: Layout, asked: int) -> int:
        """Tokens of document that the context is cut from: half of the time more than it can show.

        Only if all blocks of ``asked`` facts (up to three each) can be shown.
        """
        blocks = layout.tail_start // BLOCK
        hidden = int(rng.integers(0, 3 * blocks + 1)) if blocks >= 3 * asked + 2 and rng.random() < 0.5 else 0
        return layout.length + hidden * BLOCK

    def with_gaps(self, rng: Generator, body: Sample, places: Sequence[Range], layout: Layout) -> Sample:
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

    def stream(self, rng: Generator, chat: bool | None = None) -> Stream:
        """A stream by its share; of dialogues or texts alone if ``chat`` says so and the corpus has any."""
        shares = self.shares if chat is None else self.shares * (self.chats == chat)
        shares = shares if shares.sum() else self.shares
        return self.streams[int(rng.choice(len(self.streams), p=shares / shares.sum()))]

    def window(self, rng: Generator, stream: Stream, count: int) -> Ints:
        """Tokens of one stream, a dialogue from its start on, a text from anywhere; repeated if it is too short."""
        if stream.chat or rng.random() < 0.1:
            start = int(stream.offsets[int(rng.integers(len(stream.offsets) - 1))])
        else:
            start = int(rng.integers(len(stream)))
        start = max(0, min(start, len(stream) - count))
        window = stream.ids[start : start + count].astype(np.int64)
        return window if len(window) == count else np.resize(window, count)

"""What a turn asks: all of a short one; of a long message the lines of its question, wherever they stand in it.

A question stands at the end of a pasted text, or in front of it. The text between is no question: its words would find
places like itself. So of a long message those sentences count that end in a question mark, near its beginning and its
end; without any, the first and the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from mc_core.models.tokenizer import Tokenizer
from mc_core.models.words import Words

Ids = NDArray[np.int32]
Range = tuple[int, int]

QUESTION_TOKENS = 256
"""The lens is asked with so many tokens at most; a turn is its own question as long as it has no more."""
MESSAGE_TOKENS = 128
"""Of the turn's message, where the turn is longer: the rest is for the newest tokens of the reply."""
EDGE = 128
"""Tokens at both ends of a long message among which its question is looked for."""
SAYS = 12
"""Tokens that a question should have at least: "Where?" goes together with what stands before it."""
MARKS = tuple(mark.encode() for mark in "?？؟")
LAST_PARTS = 4
"""Stretches of text between control tokens at a prompt's end, one of which is its last message: the others close it,
name roles, and open the reply."""


@dataclass(frozen=True, eq=False)
class Question:
    """ids [t]: what the lens is asked with. Tokens of the history from ``start`` on are the turn's own, and so are
    those of ``lines``, ranges before it: they stand raw, and are not searched. start None: where the ids, as the
    newest of the history, begin."""

    ids: Ids
    start: int | None = None
    lines: tuple[Range, ...] = ()

    @classmethod
    def of(cls, question: Ids | Question) -> Question:
        """A question; ids are one by themselves, as far as they are the newest."""
        return question if isinstance(question, Question) else cls(question[-QUESTION_TOKENS:])


@dataclass(eq=False)
class TurnQuestion:
    """The question of a turn that is read token by token.

    at: where the turn begins in the history; prompt [T]; asking [T]: its tokens that say something, all but those that
    the template writes around messages; message: the range of the prompt that is its last message; whole: tokens of a
    turn's end, from that message on, that stand raw as a whole.
    """

    at: int
    prompt: Ids
    asking: NDArray[np.bool_]
    message: Range
    lines: tuple[Range, ...]
    whole: int
    reply: list[int] = field(default_factory=list)

    @classmethod
    def begin(
        cls,
        at: int,
        prompt: Ids,
        tokenizer: Tokenizer,
        words: Words,
        whole: int,
        asking: NDArray[np.bool_] | None = None,
    ) -> TurnQuestion:
        """prompt [T]: what the turn adds to the history of ``at`` tokens before the reply. asking: None for all."""
        message = last_message(prompt, tokenizer.control_ids)
        says = np.ones(len(prompt), bool) if asking is None else asking
        return cls(at, prompt, says, message, question_lines(prompt, message, tokenizer, words), whole)

    def read(self, token: int) -> None:
        """The turn has one more token."""
        self.reply.append(token)

    def now(self) -> Question:
        """As far as the turn has come."""
        read = len(self.prompt) + len(self.reply)
        if read <= QUESTION_TOKENS:
            return Question(np.concatenate([self.prompt[self.asking], np.array(self.reply, np.int32)]), self.at)
        asked = [self.prompt[start:end][self.asking[start:end]] for start, end in self.lines]
        newest = self.reply[-(QUESTION_TOKENS - sum(map(len, asked))) :]
        ids = np.concatenate([*asked, np.array(newest, np.int32)])
        end, first = self.at + read, self.at + self.message[0]
        start = first if end - first <= self.whole else end - len(newest)
        lines = tuple((self.at + a, self.at + b) for a, b in self.lines if self.at + a < start)
        return Question(ids, start, lines)


def last_message(prompt: Ids, control: frozenset[int]) -> Range:
    """The range of a prompt's last message: the longest of the last stretches between control tokens."""
    cuts = np.flatnonzero(np.isin(prompt, np.fromiter(control, np.int64, len(control))))
    starts, ends = np.append(0, cuts + 1), np.append(cuts, len(prompt))
    parts = np.flatnonzero(ends > starts)[-LAST_PARTS:]
    if not len(parts):
        return 0, len(prompt)
    best = parts[int((ends - starts)[parts].argmax())]
    return int(starts[best]), int(ends[best])


def question_lines(prompt: Ids, message: Range, tokenizer: Tokenizer, words: Words) -> tuple[Range, ...]:
    """The ranges of a message that ask, in order, ``MESSAGE_TOKENS`` at most; all of one that is no longer."""
    first, last = message
    if last - first <= MESSAGE_TOKENS:
        return (message,)
    middle = (first + last) // 2
    edges = [
        _sentences(prompt, range(first, min(first + EDGE, middle)), words),
        _sentences(prompt, range(max(last - EDGE, middle), last), words),
    ]
    asking = [grown for edge in edges for grown in _asking(prompt, edge, tokenizer)]
    if not asking:
        asking = [_joined(edges[0], 0, 1), _joined(edges[1], len(edges[1]) - 1, -1)]
    return _within(asking, MESSAGE_TOKENS)


def _sentences(prompt: Ids, where: range, words: Words) -> list[Range]:
    """Sentences and lines of a part of the prompt; those that it cuts are taken as they are."""
    ids = prompt[where.start : where.stop]
    cuts = np.flatnonzero(words.ends[ids[:-1]]) + 1 if len(ids) else np.empty(0, np.int64)
    bounds = [where.start, *(where.start + cuts).tolist(), where.stop]
    return [(a, b) for a, b in pairwise(bounds) if b > a]


def _asking(prompt: Ids, sentences: list[Range], tokenizer: Tokenizer) -> list[Range]:
    """Sentences with a question mark at their end."""
    found = []
    for i, (start, end) in enumerate(sentences):
        closing = b"".join(tokenizer.token_bytes(int(token)) for token in prompt[max(start, end - 2) : end])
        if any(mark in closing for mark in MARKS):
            found.append(_joined(sentences, i, -1))
    return found


def _joined(sentences: list[Range], i: int, step: int) -> Range:
    """A sentence, with those next to it until it says something."""
    start, end = sentences[i]
    while end - start < SAYS and 0 <= i + step < len(sentences):
        i += step
        start, end = min(start, sentences[i][0]), max(end, sentences[i][1])
    return start, end


def _within(ranges: Sequence[Range], room: int) -> tuple[Range, ...]:
    """Ranges joined where they overlap, the first half and the last half of the room if they exceed it."""
    joined: list[Range] = []
    for start, end in ranges:
        if joined and start <= joined[-1][1]:
            joined[-1] = (min(start, joined[-1][0]), max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    places = np.concatenate([np.arange(a, b) for a, b in joined])
    if len(places) > room:
        places = np.concatenate([places[: room // 2], places[len(places) - room // 2 :]])
    breaks = np.flatnonzero(np.diff(places) > 1)
    firsts, lasts = places[np.append(0, breaks + 1)], places[np.append(breaks, len(places) - 1)]
    return tuple(zip(firsts.tolist(), (lasts + 1).tolist(), strict=True))

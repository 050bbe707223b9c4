"""What lens keys are trained on: pieces of history as blocks, tails that ask for something in them, and where it is.

A tail is what a session asks its lens with: the newest tokens of a turn, control tokens included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from mc_core.lab.data.arrays import Ints, Range
from mc_core.lab.tasks.build import fill
from mc_core.lab.tasks.concepts import CONCEPTS, Concept
from mc_core.lab.tasks.concepts.values import concept_value
from mc_core.lab.tasks.episode import Asked, Episode
from mc_core.lab.tasks.make import make_episode
from mc_core.lab.tasks.paraphrase import pairs
from mc_core.lab.training.haystack import Haystack
from mc_core.lab.training.memory_samples import EpisodeDocument, episode_document
from mc_core.session.session import QUESTION_TOKENS

LINKED = ("chain", "combine")
"""Tasks whose question names but the first of its statements: finding any of them is what can be asked for."""
CHAT, ANSWERED, AMONG_TEXT, REPLY_TAIL = 0.4, 0.2, 0.1, 64


@dataclass(frozen=True)
class Wanted:
    """One thing to find: query is an index of ``LensSample.tails``; blocks hold it, ``others`` answer as well."""

    query: int
    blocks: tuple[int, ...]
    others: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class LensSample:
    """blocks [n, K]: a piece of history; tails: of at most ``QUESTION_TOKENS`` ids; wanted: what they ask for.

    Samples of one ``kind`` may answer each other's questions, so their blocks don't count as wrong.
    """

    kind: str
    blocks: Ints
    tails: tuple[Ints, ...]
    wanted: tuple[Wanted, ...]


def touched(place: Range, block_size: int) -> tuple[int, ...]:
    """Blocks that hold a part of the place."""
    return tuple(range(place[0] // block_size, (place[1] - 1) // block_size + 1))


def task_sample(
    rng: Generator, maker: Haystack, task: str, block_size: int, distractors: int, filler: float
) -> LensSample:
    """An episode of the task in a little text, ``filler`` tokens a statement, so that all its blocks can be encoded."""
    paraphrase = task == "paraphrase"
    episode = concept_episode(rng, distractors) if paraphrase else make_episode(rng, task, False, distractors)
    chat = bool(rng.random() < CHAT)
    size = maker.room(episode.statements, chat)
    tokens = size + int(rng.uniform(filler / 2, filler) * len(episode.statements))
    tokens = -(-tokens // block_size) * block_size
    document = episode_document(rng, maker, episode, tokens, chat)
    wanted = wanted_of(document, task, block_size)
    tails = [tail_of(rng, maker, ids, answer.ids) for ids, answer in document.turns]
    return LensSample(task, document.ids.reshape(-1, block_size), tuple(tails), tuple(wanted))


def wanted_of(document: EpisodeDocument, task: str, block_size: int) -> list[Wanted]:
    """Each gold statement of each question on its own, but for linked statements."""
    wanted = []
    for query, places in enumerate(document.gold):
        groups = [touched(place, block_size) for place in places]
        union = tuple(sorted({block for group in groups for block in group}))
        if task in LINKED:
            groups = [union] if union else []
        wanted += [Wanted(query, group, union) for group in groups]
    return wanted


def concept_episode(rng: Generator, distractors: int) -> Episode:
    """Many things said, each asked for in all the words that training has for it; one concept of a group.

    Who says the same in other words, of another value, looks for it too: so wordings of statements are learned to be
    alike, and a question finds those that it is never trained with.
    """
    found: dict[str, Concept] = {}
    for i in rng.permutation(len(CONCEPTS)):
        found.setdefault(CONCEPTS[i].family, CONCEPTS[i])
    statements: list[str] = []
    asked: list[Asked] = []
    for i, concept in enumerate(list(found.values())[: 4 + distractors]):
        options = pairs(concept, False)
        stated = options[int(rng.integers(len(options)))][0]
        value = concept_value(rng, concept.kind)
        answer = fill(concept.answer, v=value)
        statements.append(fill(stated, v=value))
        asking = [question for said, question in options if said == stated]
        asking += [fill(said, v=concept_value(rng, concept.kind)) for said in concept.stated if said != stated]
        asked += [Asked(question, answer, (value,), (i,)) for question in asking]
    return Episode("paraphrase", tuple(statements), tuple(asked))


def tail_of(rng: Generator, maker: Haystack, prompt: Ints, answer: Ints) -> Ints:
    """The turn as the lens gets it: alone, at the end of a longer prompt, or with the reply's first tokens."""
    tail = prompt
    if rng.random() < AMONG_TEXT:
        text = maker.window(rng, maker.stream(rng, chat=False), int(rng.integers(8, 33)))
        opening = len(maker.encoder.opening("user"))
        tail = np.concatenate([prompt[:opening], text, prompt[opening:]])
    if rng.random() < ANSWERED:
        tail = np.concatenate([tail, answer[: int(rng.integers(1, 4))]])
    return tail[-QUESTION_TOKENS:]


def text_sample(rng: Generator, maker: Haystack, block_size: int, keep: float = 0.3) -> LensSample:
    """Inverse cloze (Lee et al. 2019): some words of a passage ask for where it stood; ``keep``: it still does."""
    stream = maker.stream(rng)
    window = maker.window(rng, stream, 4 * block_size)
    start = int(rng.integers(block_size, 3 * block_size - 24))
    end = start + int(rng.integers(8, 25))
    words = window[start:end]
    words = words[rng.random(len(words)) < rng.uniform(0.4, 1.0)]
    if rng.random() < keep:
        blocks, place = window, (start, end)
    else:
        blocks = np.concatenate([window[:start], window[end:]])
        blocks, place = blocks[: 3 * block_size], (start - 4, start + 4)
    tail = _framed(maker, words) if rng.random() < 0.5 else words
    return LensSample("text", blocks.reshape(-1, block_size), (tail,), (Wanted(0, touched(place, block_size)),))


def reply_sample(rng: Generator, maker: Haystack, block_size: int) -> LensSample | None:
    """A turn of a dialogue asks for the next one. None where the corpus gives no two turns."""
    window = maker.window(rng, maker.stream(rng, chat=True), 8 * block_size)
    turns = np.flatnonzero(window == maker.encoder.turn_start)
    if len(turns) < 3:
        return None
    at = int(rng.integers(len(turns) - 2))
    first, second, after = turns[at : at + 3].tolist()
    shift = int(rng.integers(block_size))
    begin = max(0, second - shift)
    count = max(1, min(3, -(-(after - begin) // block_size)))
    blocks = np.array(window[begin : begin + count * block_size])
    # The question itself must not stand before its reply, or its words alone would do.
    filler = maker.window(rng, maker.stream(rng), block_size)
    blocks[: second - begin] = filler[: second - begin]
    if len(blocks) < count * block_size:
        return None
    place = (second - begin, min(after - begin, len(blocks)))
    tail = np.concatenate([window[first:second], np.array(maker.encoder.opening("assistant"), np.int64)])
    wanted = Wanted(0, touched(place, block_size))
    return LensSample("reply", blocks.reshape(-1, block_size), (tail[-REPLY_TAIL:],), (wanted,))


def _framed(maker: Haystack, words: Ints) -> Ints:
    encoder = maker.encoder
    opening, closing = encoder.opening("user"), [*encoder.closing(), *encoder.opening("assistant")]
    return np.concatenate([np.array(opening, np.int64), words, np.array(closing, np.int64)])


def random_blocks(rng: Generator, maker: Haystack, count: int, block_size: int, run: int = 16) -> Ints:
    """``count`` blocks of real text [count, K], in runs of neighbours."""
    runs: Sequence[Ints] = [
        maker.window(rng, maker.stream(rng), run * block_size).reshape(run, block_size) for _ in range(-(-count // run))
    ]
    return np.concatenate(runs)[:count]

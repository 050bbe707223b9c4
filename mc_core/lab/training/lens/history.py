"""Histories to measure recall in: real text with one episode of each task strewn over all of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from mc_core.lab.data.arrays import Ints, Range
from mc_core.lab.data.cache import Stream
from mc_core.lab.data.interleave import interleaved
from mc_core.lab.tasks.make import make_episode
from mc_core.lab.training.haystack import Haystack
from mc_core.lab.training.lens.samples import CHAT, touched

KEPT = 30
"""One part in so many of each file, its end, is kept from lens training: held-out documents alone are too few."""


@dataclass(frozen=True, eq=False)
class Question:
    """tail: the turn's ids; gold: the blocks of each statement that the answer needs."""

    task: str
    tail: Ints
    gold: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, eq=False)
class History:
    """blocks [n, K], and what is asked about them."""

    blocks: Ints
    questions: tuple[Question, ...]


def make_history(rng: Generator, maker: Haystack, text: Ints, tasks: Sequence[str]) -> History:
    """``text`` [n, K] with one held-out episode of each task in it: statements anywhere, in their order.

    A statement stands in a few blocks of other real text, at any offset.
    """
    size = text.shape[1]
    episodes = [make_episode(rng, task, held_out=True) for task in tasks]
    pieces = [_piece(rng, maker, said, size) for episode in episodes for said in episode.statements]
    at = [np.sort(rng.integers(0, len(text) + 1, len(episode.statements))) for episode in episodes]
    blocks, ranges = interleaved(text.ravel(), [ids for ids, _ in pieces], np.concatenate(at) * size)
    places = [touched((start + a, start + b), size) for (start, _), (_, (a, b)) in zip(ranges, pieces, strict=True)]
    questions, first = list[Question](), 0
    for episode in episodes:
        for asked in episode.asked:
            tail = np.array(maker.prompt(asked.question), np.int64)
            gold = tuple(places[first + i] for i in asked.gold)
            questions += [Question(episode.task, tail, gold)] if gold else []
        first += len(episode.statements)
    return History(blocks.reshape(-1, size), tuple(questions))


def _piece(rng: Generator, maker: Haystack, statement: str, block_size: int) -> tuple[Ints, Range]:
    """A statement in whole blocks of text, and where in them its own tokens stand."""
    chat = bool(rng.random() < CHAT)
    ids, (a, b) = maker.statement(rng, statement, chat)
    tokens = (len(ids) // block_size + 2) * block_size
    piece, [(start, _)] = maker.lay(rng, [ids], tokens, chat)
    return piece, (start + a, start + b)


def kept_apart(streams: Sequence[Stream], kept: bool) -> list[Stream]:
    """The end of each stream (``kept``), which lens training does not see, or all that comes before it."""
    parts = []
    for stream in streams:
        cut = int(np.searchsorted(stream.offsets, len(stream) - len(stream) // KEPT))
        cut = min(max(1, cut), len(stream.offsets) - 2)
        if len(stream.offsets) < 3:
            # A single document: too little to divide.
            parts += [] if kept else [stream]
            continue
        at = int(stream.offsets[cut])
        ids = stream.ids[at:] if kept else stream.ids[:at]
        offsets = stream.offsets[cut:] - at if kept else stream.offsets[: cut + 1]
        parts.append(Stream(stream.name, ids, offsets, stream.chat))
    return parts

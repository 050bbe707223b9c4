"""Passages to train on: a history of real text, sometimes with facts in it, and what follows it."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from mc_core.errors import ConfigError
from mc_core.lab.data.arrays import Ints
from mc_core.lab.data.cache import Stream
from mc_core.lab.tasks.make import TASKS, make_episode
from mc_core.lab.training.focus.contexts import Passage
from mc_core.lab.training.haystack import QUESTION_WEIGHT, Haystack
from mc_core.lab.training.memory_samples import episode_document

TAIL_WEIGHT = 0.25
"""Of foretelling a token that the working context already holds, beside 1 for one after it."""
MEMORY_TAIL_WEIGHT = 0.05
"""The same where the point is the answer."""
CHAT = 0.4


class PassageMaker:
    """Cuts passages out of a haystack's streams, a stream by its share."""

    def __init__(self, haystack: Haystack, block_size: int = 32) -> None:
        self.haystack, self.block_size = haystack, block_size

    def text(self, rng: Generator, history: int, future: int) -> Passage:
        """``history`` tokens and the ``future`` ones after them, from one stream; repeated if that is too short."""
        return cut(rng, self.haystack.stream(rng), history, future)

    def rebuild(self, rng: Generator, history: int, recent: int) -> Passage:
        """``history`` tokens, and then once more those between the first block and the newest ``recent``."""
        text, size = self.text(rng, history, 0), self.block_size
        again = text.ids[size : max(size, history - recent) // size * size]
        weights = np.concatenate([text.weights, np.ones(len(again), np.float32)])
        return Passage(np.concatenate([text.ids, again]), history, weights)

    def memory(self, rng: Generator, history: int, *, gisted: float = 0.0, tasks: tuple[str, ...] = TASKS) -> Passage:
        """An episode of one of the tasks in about ``history`` tokens, one of its questions at the end, then the answer.

        The blocks that the answer needs, and their neighbours, stand open; but in a share ``gisted`` of the passages
        whose values are plain words they do not: what a few words say must be read off gists then, as digits never can.
        """
        task = tasks[int(rng.integers(len(tasks)))]
        episode = make_episode(rng, task, self.haystack.held_out)
        chat = bool(rng.random() < CHAT)
        tokens = max(history, self.haystack.room(episode.statements, chat))
        document = episode_document(rng, self.haystack, episode, tokens, chat)
        number = int(rng.integers(len(episode.asked)))
        prompt, answer = document.turns[number]
        before = len(document.ids) + len(prompt)
        weights = np.concatenate([np.full(before, MEMORY_TAIL_WEIGHT, np.float32), answer.weights])
        weights[len(document.ids) : before] = QUESTION_WEIGHT
        words = all(value.replace(" ", "").isalpha() for value in episode.asked[number].values)
        opened = () if words and rng.random() < gisted else self._blocks(document.gold[number], len(document.ids))
        return Passage(np.concatenate([document.ids, prompt, answer.ids]), before, weights, opened)

    def _blocks(self, places: tuple[tuple[int, int], ...], tokens: int) -> tuple[int, ...]:
        """Complete blocks that the places touch, and their neighbours, ascending."""
        size, found = self.block_size, set[int]()
        for start, end in places:
            found.update(range(max(0, start // size - 1), min(tokens // size, (end - 1) // size + 2)))
        return tuple(sorted(found))


def cut(rng: Generator, stream: Stream, history: int, future: int) -> Passage:
    """``history`` tokens from anywhere in a stream, and the ``future`` ones after them; repeated if it is too short."""
    count = history + future
    start = int(rng.integers(max(1, len(stream) - count)))
    window = stream.ids[start : start + count].astype(np.int64)
    ids = window if len(window) == count else np.resize(window, count)
    weights = np.full(count, TAIL_WEIGHT, np.float32)
    weights[history:] = 1.0
    return Passage(ids, history, weights)


def passage_of(row: Ints, horizon: int) -> Passage:
    """A row of token ids, padded at the end with -1, as a passage whose last ``horizon`` tokens are to be foretold."""
    padding = row < 0
    length = int(np.argmax(padding)) if padding.any() else len(row)
    if not padding[length:].all() or length <= horizon:
        raise ConfigError(
            f"ids must have a history before the horizon of {horizon} tokens and be padded at their end only, "
            f"got a row of {length} tokens"
        )
    weights = np.full(length, TAIL_WEIGHT, np.float32)
    weights[length - horizon :] = 1.0
    return Passage(row[:length], length - horizon, weights)

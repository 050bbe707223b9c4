"""Planting episodes: as many as possible in one history, so that it is read once for all of their questions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.random import Generator

from mc_core.errors import ConfigError
from mc_core.lab.data.arrays import Ids, Ints, Range
from mc_core.lab.data.interleave import interleaved
from mc_core.lab.tasks.episode import Episode
from mc_core.lab.tasks.filler import Filler
from mc_core.lab.tasks.history import History, Question
from mc_core.lab.tasks.keys import keys_of
from mc_core.lab.tasks.make import make_episode
from mc_core.lab.tasks.plain import WRITTEN, statements
from mc_core.models.tokenizer import Tokenizer

SUITES: dict[str, tuple[str, ...]] = {
    "passkey": ("passkey",),
    "needle": ("needle",),
    "multikey": ("multikey",),
    "multivalue": ("multivalue",),
    "uuid": ("uuid",),
    "tracking": ("tracking", "chain"),
    "paraphrase": ("paraphrase",),
    "combine": ("combine",),
    "absent": ("absent",),
}
"""The tasks that each suite draws its episodes from, in turn."""
PLANTED = (*SUITES, *WRITTEN)
"""All suites that can be planted: those, and the ones that were written by hand."""
PLANTED_SHARE = 0.25
"""Of a history that its statements may fill; the rest is text."""
DRAWS = 30
"""Episodes drawn, until one clashes with nothing that a history holds already, before a further history is begun."""


@dataclass(frozen=True)
class PlantPlan:
    """length: tokens of a history. trials: questions of each suite, or of each by its name. depths: cells of the depth
    grid. histories: most that are made: a suite whose questions have no key of their own (pass keys) gets one question
    of each. held_out: ask what training never asks."""

    length: int
    suites: tuple[str, ...]
    trials: int | Mapping[str, int]
    depths: int = 11
    histories: int = 10
    held_out: bool = True

    def __post_init__(self) -> None:
        for name in ("length", "depths", "histories"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if min([self.trials] if isinstance(self.trials, int) else self.trials.values()) < 1:
            raise ConfigError(f"trials must be at least 1, got {self.trials}")
        strange = [name for name in self.suites if name not in PLANTED]
        if strange:
            raise ConfigError(f"suites must be of {', '.join(PLANTED)}, got {', '.join(strange)}")

    def questions(self, suite: str) -> int:
        """Of a suite."""
        return self.trials if isinstance(self.trials, int) else self.trials[suite]


@dataclass(eq=False)
class _Planting:
    """A history in the making."""

    planted: list[tuple[str, Episode, list[Ids], int, int | None]] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    tokens: int = 0


def plant(rng: Generator, tokenizer: Tokenizer, filler: Filler, plan: PlantPlan) -> list[History]:
    """Histories that hold the questions of all suites; fewer than ``trials`` of those that ``histories`` limits."""
    histories: list[_Planting] = []
    for suite in plan.suites:
        _draw(rng, tokenizer, plan, suite, histories)
    return [_history(rng, filler, plan, history) for history in histories]


def _draw(rng: Generator, tokenizer: Tokenizer, plan: PlantPlan, suite: str, histories: list[_Planting]) -> None:
    cells, trials = rng.permutation(plan.depths), plan.questions(suite)
    next_episode = _drawer(rng, suite, plan.held_out)
    count = drawn = failed = 0
    while count < trials:
        episode = next_episode(drawn)
        ids = [tokenizer.encode(f" {statement}") for statement in episode.statements]
        keys, cost = keys_of(episode), sum(map(len, ids))
        room = max(plan.length * PLANTED_SHARE, 1) - cost
        fitting = [history for history in histories if not history.keys & keys and history.tokens <= room]
        if not fitting:
            failed += 1
            if room < 0 and failed > DRAWS:
                raise ConfigError(f"lengths: {plan.length} tokens are too few for an episode of {suite}, of {cost}")
            if room < 0 or (failed <= DRAWS and histories):
                continue
            if len(histories) >= plan.histories:
                return
            fitting = [_Planting()]
            histories += fitting
        history = min(fitting, key=lambda each: each.tokens)
        asked = min(len(episode.asked), trials - count)
        cell = int(cells[drawn % plan.depths]) if len(ids) == 1 else None
        history.planted.append((suite, episode, ids, asked, cell))
        history.keys |= keys
        history.tokens += cost
        count, drawn, failed = count + asked, drawn + 1, 0


def _drawer(rng: Generator, suite: str, held_out: bool) -> Callable[[int], Episode]:
    """Gives an episode of a suite, the task by how many were used: drawn, or of what is written down the next one."""
    if suite in WRITTEN:
        written = _shuffled(rng, [each.episode(suite) for each in statements(suite)])
        return lambda drawn: next(written)
    tasks = SUITES[suite]
    return lambda drawn: make_episode(rng, tasks[drawn % len(tasks)], held_out)


def _shuffled(rng: Generator, episodes: Sequence[Episode]) -> Iterator[Episode]:
    """All of them in random order, over and over."""
    while True:
        yield from (episodes[i] for i in rng.permutation(len(episodes)).tolist())


def _history(rng: Generator, filler: Filler, plan: PlantPlan, history: _Planting) -> History:
    hay = filler.take(rng, plan.length - history.tokens - len(filler.prefix))
    words, sentences = (len(filler.prefix) + found for found in (filler.borders(hay), filler.sentence_borders(hay)))
    hay = np.concatenate([filler.prefix, hay])
    stated: list[Ints] = []
    offsets: list[Ints] = []
    for suite, _, ids, _, cell in history.planted:
        borders = sentences if suite in WRITTEN else words
        depths = np.sort(rng.random(len(ids))) if cell is None else np.array([(cell + rng.random()) / plan.depths])
        stated += [each.astype(np.int64) for each in ids]
        offsets.append(borders[np.searchsorted(borders, depths * len(hay))])
    laid, spans = interleaved(hay.astype(np.int64), stated, np.concatenate(offsets))
    questions = [
        question
        for number, entry in enumerate(_placed(history))
        for question in _questions(number, *entry, spans, plan.length)
    ]
    order = rng.permutation(len(questions))
    return History(laid.astype(np.int32), tuple(spans), tuple(questions[i] for i in order.tolist()))


def _placed(history: _Planting) -> list[tuple[str, Episode, int, int]]:
    """(suite, episode, questions, number of its first statement)."""
    found, first = [], 0
    for suite, episode, ids, asked, _ in history.planted:
        found.append((suite, episode, asked, first))
        first += len(ids)
    return found


def _questions(
    number: int, suite: str, episode: Episode, asked: int, first: int, spans: Sequence[Range], length: int
) -> list[Question]:
    found = []
    for one in episode.asked[:asked]:
        gold = tuple(first + i for i in one.gold)
        depth = float(np.mean([spans[i][0] for i in gold])) / length if gold else None
        found.append(Question(suite, episode.task, one, gold, depth, number))
    return found

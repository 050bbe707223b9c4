"""Episodes of memory tasks as tokens: a long document with questions after it, or a training sample cut from one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from mc_core.errors import ConfigError
from mc_core.lab.data.arrays import Ints, Range
from mc_core.lab.tasks.build import MAX_DISTRACTORS
from mc_core.lab.tasks.episode import Asked, Episode
from mc_core.lab.tasks.make import make_episode
from mc_core.lab.training.haystack import STATED_WEIGHT, Haystack
from mc_core.lab.training.sample import BLOCK, Layout, Sample

MAX_TURNS = 4
CHAT, OTHERS_SHOWN, LATE = 0.4, 0.7, 0.6
LATE_TASKS = ("needle", "uuid", "tracking", "chain", "absent")
"""What stands in the newest text beside a question: their statements answer no question of another episode."""
MAX_LATE = 3
LOOK_ALIKES = 2
"""Distractors that a sample's episode has beside those asked for, so that the newest text has some to state."""
TRIES = 3


@dataclass(frozen=True)
class EpisodeDocument:
    """A history and the questions about it.

    ids [N]; places: where each statement stands in ids; gold: for each question the places of its gold statements;
    turns: for each question the ids of its turn up to where the answer begins, and the answer with the end of its turn.
    """

    ids: Ints
    places: tuple[Range, ...]
    gold: tuple[tuple[Range, ...], ...]
    turns: tuple[tuple[Ints, Sample], ...]


def episode_document(
    rng: Generator, maker: Haystack, episode: Episode, tokens: int, chat: bool = False
) -> EpisodeDocument:
    """The episode in text of ``tokens`` tokens, statements in order at random places.

    chat: text is a dialogue, and statements are turns of it that are acknowledged. ConfigError if they do not fit.
    """
    stated = [maker.statement(rng, text, chat) for text in episode.statements]
    needed = sum(len(ids) for ids, _ in stated)
    if needed > tokens:
        raise ConfigError(f"tokens must be at least {needed} to hold the {episode.task} episode, got {tokens}")
    ids, places = _laid(rng, maker, stated, tokens, chat)
    gold = tuple(tuple(places[i] for i in asked.gold) for asked in episode.asked)
    turns = tuple(
        (np.array(maker.prompt(asked.question), np.int64), maker.reply(asked.answer, asked.values, mark))
        for mark, asked in enumerate(episode.asked, 1)
    )
    return EpisodeDocument(ids, tuple(places), gold, turns)


def episode_sample(
    rng: Generator, maker: Haystack, layout: Layout, episode: Episode, chat: bool | None = None
) -> Sample | None:
    """A working context of the episode with as many of its questions in the tail as fit, ``MAX_TURNS`` at most.

    All gold blocks are shown with their neighbours; others may be hidden by gaps. Statements that no question needs
    are left out where there is no room. Often some that nobody asks for stand in the newest text, where the last thing
    that was said is the easiest to tell, and wrong. chat is drawn at random if not given. None if no question fits the
    tail, or its gold statements the rest.
    """
    chat = bool(rng.random() < CHAT) if chat is None else chat
    stated = [maker.statement(rng, text, chat) for text in episode.statements]
    for limit in (int(rng.integers(1, MAX_TURNS + 1)), 1):
        asked, dialogue = _dialogue(rng, maker, episode.asked, limit, layout.length - layout.tail_start - 2)
        if not asked:
            return None
        room = Layout(layout.length - len(dialogue), layout.tail_start)
        gold = sorted({i for one in asked for i in one.gold})
        span = maker.span(rng, room, len(gold))
        moved, newest = _newest(rng, maker, episode, room.length - room.tail_start, chat)
        early = [i for i in range(len(stated)) if i not in moved]
        kept = _kept(rng, [len(ids) for ids, _ in stated], gold, span - len(newest), early)
        if kept is not None:
            ids, places = _laid(rng, maker, [stated[i] for i in kept], span - len(newest), chat)
            shown = _shown(rng, places, [kept.index(i) for i in gold], layout)
            body = Sample.plain(np.concatenate([ids, newest]))
            return Sample.joined([maker.with_gaps(rng, body, shown, room), dialogue])
    return None


def memory_sample(
    rng: Generator, maker: Haystack, layout: Layout, tasks: Sequence[str], distractors: int
) -> Sample | None:
    """A sample of an episode of one of the tasks, half of the time with up to ``distractors`` further statements.

    ``LOOK_ALIKES`` more are there for the newest text. Draws anew where one does not fit; None if none of a few does.
    """
    for _ in range(TRIES):
        sample = episode_sample(rng, maker, layout, _drawn(rng, maker, tasks, distractors, LOOK_ALIKES))
        if sample is not None:
            return sample
    return None


def memory_drill(rng: Generator, maker: Haystack, length: int, tasks: Sequence[str], distractors: int) -> Sample:
    """Nothing but episodes, each with its questions at once, to ``length`` tokens (see ``SampleMaker.drill``)."""
    parts: list[Sample] = []
    total = mark = 0
    while total < length:
        episode = _drawn(rng, maker, tasks, distractors)
        chat = bool(rng.random() < CHAT)
        parts += [Sample.plain(maker.statement(rng, text, chat)[0], STATED_WEIGHT) for text in episode.statements]
        for i in rng.permutation(len(episode.asked)):
            one, mark = episode.asked[i], mark + 1
            parts.append(maker.turn(one.question, one.answer, one.values, mark))
        total = sum(map(len, parts))
    return Sample.joined(parts)[:length]


def _drawn(rng: Generator, maker: Haystack, tasks: Sequence[str], distractors: int, least: int = 0) -> Episode:
    """An episode of one of the tasks, half of the time with up to ``distractors`` statements more than ``least``."""
    task = tasks[int(rng.integers(len(tasks)))]
    more = int(rng.integers(distractors + 1)) if rng.random() < 0.5 else 0
    return make_episode(rng, task, maker.held_out, min(MAX_DISTRACTORS, least + more))


def _laid(
    rng: Generator, maker: Haystack, stated: Sequence[tuple[Ints, Range]], span: int, chat: bool
) -> tuple[Ints, list[Range]]:
    """The text with the statements in order, and where their own tokens stand in it."""
    ids, ranges = maker.lay(rng, [ids for ids, _ in stated], span, chat, ordered=True)
    return ids, [(at + a, at + b) for (at, _), (_, (a, b)) in zip(ranges, stated, strict=True)]


def _dialogue(
    rng: Generator, maker: Haystack, asked: Sequence[Asked], limit: int, room: int
) -> tuple[list[Asked], Sample]:
    """Up to ``limit`` questions, in random order, whose turns fit into ``room`` tokens; and their turns."""
    chosen: list[Asked] = []
    parts: list[Sample] = []
    for i in rng.permutation(len(asked)):
        one = asked[i]
        turn = maker.turn(one.question, one.answer, one.values, len(parts) + 1)
        if len(parts) < limit and len(turn) <= room:
            chosen.append(one)
            parts.append(turn)
            room -= len(turn)
    return chosen, Sample.joined(parts) if parts else Sample.plain([])


def _newest(rng: Generator, maker: Haystack, episode: Episode, room: int, chat: bool) -> tuple[list[int], Ints]:
    """The newest text before the questions, if statements that nobody asks for stand there, else no text.

    They are distractors of the episode if it has any, whose indices are returned, and statements of other tasks, as far
    as they fit; about as much text as the tail has ``room`` for, so that a border may cut them.
    """
    if rng.random() >= LATE:
        return [], np.empty(0, np.int64)
    own = _tempting(rng, episode)[: int(rng.integers(1, MAX_LATE))]
    texts = [episode.statements[i] for i in own]
    for _ in range(int(rng.integers(0 if own else 1, MAX_LATE + 1 - len(own)))):
        other = make_episode(rng, LATE_TASKS[int(rng.integers(len(LATE_TASKS)))], maker.held_out)
        texts.append(other.statements[int(rng.integers(len(other.statements)))])
    stated = [maker.statement(rng, text, chat)[0] for text in texts]
    fit = _kept(rng, list(map(len, stated)), [], room + BLOCK, range(len(stated))) or []
    if not fit:
        return [], np.empty(0, np.int64)
    chosen = [stated[i] for i in fit]
    length = int(rng.integers(sum(map(len, chosen)), room + BLOCK + 1))
    return [own[i] for i in fit if i < len(own)], maker.lay(rng, chosen, length, chat)[0]


def _tempting(rng: Generator, episode: Episode) -> list[int]:
    """The episode's distractors in random order, those first that state a number: the likeliest to be told instead.

    They are of keys and persons of their own, so that none answers a question, where another episode's could.
    """
    order = [int(i) for i in rng.permutation(episode.distractors)]
    return sorted(order, key=lambda i: not any(char.isdigit() for char in episode.statements[i]))


def _kept(
    rng: Generator, lengths: Sequence[int], gold: Sequence[int], span: int, of: Sequence[int]
) -> list[int] | None:
    """Which statements fit into ``span`` tokens: all gold ones, and others of some until there is no room; in order."""
    room = span - sum(lengths[i] for i in gold)
    if room < 0:
        return None
    kept = list(gold)
    for i in rng.permutation(of).tolist():
        if i not in gold and lengths[i] <= room:
            kept.append(i)
            room -= lengths[i]
    return sorted(kept)


def _shown(rng: Generator, places: Sequence[Range], gold: Sequence[int], layout: Layout) -> list[Range]:
    """Places that no gap may hide: the gold ones, and some others as far as all of them can be shown.

    Old values and look-alikes must be in view as often as in serving, where they are opened for their words.
    """
    most = (layout.tail_start // BLOCK - 2) // 3
    others = [i for i in rng.permutation(len(places)).tolist() if i not in gold and rng.random() < OTHERS_SHOWN]
    return [places[i] for i in (*gold, *others[: max(0, most - len(gold))])]

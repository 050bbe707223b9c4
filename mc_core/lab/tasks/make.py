"""Makes an episode of a task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from numpy.random import Generator

from mc_core.errors import ConfigError
from mc_core.lab.tasks.absent import absent
from mc_core.lab.tasks.build import MAX_DISTRACTORS
from mc_core.lab.tasks.chain import chain
from mc_core.lab.tasks.combine import combine
from mc_core.lab.tasks.episode import Episode
from mc_core.lab.tasks.facts import reworded
from mc_core.lab.tasks.needles import multikey, multivalue, needle, passkey, uuid
from mc_core.lab.tasks.paraphrase import paraphrase
from mc_core.lab.tasks.tracking import tracking

MAKERS: dict[str, Callable[[Generator, bool, int], Episode]] = {
    "passkey": passkey,
    "needle": needle,
    "multikey": multikey,
    "multivalue": multivalue,
    "uuid": uuid,
    "tracking": tracking,
    "chain": chain,
    "paraphrase": paraphrase,
    "combine": combine,
    "absent": absent,
}
TASKS: tuple[str, ...] = tuple(MAKERS)
BY_PAIRS = ("passkey", "paraphrase")
"""What evaluation keeps of these is pairs of statement and question, word by word."""


def make_episode(rng: Generator, task: str, held_out: bool = False, distractors: int = 0) -> Episode:
    """An episode of one of ``TASKS``.

    held_out: keys and pairs of wordings that training never uses. distractors: further statements of the same kind
    that no question is about; paraphrases have at most as many as there are groups of concepts.
    """
    if task not in MAKERS:
        raise ConfigError(f"task must be one of {TASKS}, got {task!r}")
    if not 0 <= distractors <= MAX_DISTRACTORS:
        raise ConfigError(f"distractors must lie in [0, {MAX_DISTRACTORS}], got {distractors}")
    episode = MAKERS[task](rng, held_out, distractors)
    if held_out or task in BY_PAIRS:
        return episode
    return replace(episode, asked=tuple(replace(one, question=reworded(rng, one.question)) for one in episode.asked))

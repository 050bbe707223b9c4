"""What the questions of an episode go by, so that no other episode of the same history can answer them too."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from itertools import pairwise

from mc_core.lab.tasks import word_lists
from mc_core.lab.tasks.build import fill
from mc_core.lab.tasks.combine import TRAITS
from mc_core.lab.tasks.concepts import CONCEPTS
from mc_core.lab.tasks.episode import Episode
from mc_core.lab.tasks.plain import WRITTEN

WORD = re.compile(r"[A-Za-z]+")
VARIABLE = re.compile(r"\b[A-Z]\d{3}\b")


def keys_of(episode: Episode) -> frozenset[str]:
    """Names, magic keys, variables, traits and concepts that an episode speaks of; its task if it has none of these.

    What was written by hand goes by its own words: its writer saw to it that no two of them can be mixed up.

    Two episodes that share a key must not stand in one history.
    """
    texts = [*episode.statements, *(asked.question for asked in episode.asked)]
    found = {key for text in texts for key in _keys(episode.task, text)}
    return frozenset(found or {episode.task})


def _keys(task: str, text: str) -> Iterator[str]:
    if task in WRITTEN:
        yield text
        return
    if task == "paraphrase":
        yield from (family for family, pattern in _concepts() if pattern.fullmatch(text))
        return
    parts = WORD.findall(text)
    for first, second in pairwise(parts):
        if (first in _FIRST and second in _SECOND) or (first in _NAMES and second in _SURNAMES):
            yield f"{first} {second}"
    yield from VARIABLE.findall(text)
    yield from (trait for trait in _traits() if re.search(rf"{re.escape(trait)}\b", text))


@cache
def _concepts() -> tuple[tuple[str, re.Pattern[str]], ...]:
    """Families of concepts, and patterns of all that is said of them."""
    said = [(concept.family, text) for concept in CONCEPTS for text in (*concept.stated, *concept.asked)]
    return tuple((family, re.compile(_pattern(text))) for family, text in said)


def _pattern(template: str) -> str:
    """A statement with any value; before a vowel "a" became "an"."""
    before, hole, after = template.partition("{v}")
    if not hole:
        return re.escape(template)
    start = re.escape(before[:-2]) + "an? " if before.endswith(" a ") else re.escape(before)
    return f"{start}.+{re.escape(after)}"


@cache
def _traits() -> tuple[str, ...]:
    """What persons are found by."""
    return tuple(fill(does, v=value) for _, does, values in TRAITS for value in values)


_FIRST, _SECOND = frozenset(word_lists.ADJECTIVES), frozenset((*word_lists.NOUNS, *word_lists.THINGS))
_NAMES, _SURNAMES = frozenset(word_lists.NAMES), frozenset(word_lists.SURNAMES)

"""What all tasks are built with: keys on one side of the split, values that can be told apart, and the mixing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from numpy.random import Generator

from mc_core.lab.tasks.episode import Asked, Episode
from mc_core.lab.tasks.facts import Maker, held_out_key, look_alike, pick

ALIKE = 0.6
MAX_DISTRACTORS = 300
"""There are about 460 held-out names of persons; the limit keeps their drawing short."""


def fresh_keys(rng: Generator, make: Maker, count: int, held_out: bool, taken: Sequence[str] = ()) -> list[str]:
    """``count`` new keys, all held out or none; many share a word with one of ``taken`` or with each other."""
    known = list(taken)
    while len(known) < len(taken) + count:
        key = make(rng)
        if known and rng.random() < ALIKE:
            key = look_alike(rng, key, pick(rng, known))
        if key not in known and held_out_key(key) == held_out:
            known.append(key)
    return known[len(taken) :]


def apart(rng: Generator, make: Callable[[], str], count: int, taken: Sequence[str] = ()) -> list[str]:
    """``count`` new values of which none is a part of another one or of one ``taken``."""
    known = list(taken)
    while len(known) < len(taken) + count:
        value = make()
        if not any(value in other or other in value for other in known):
            known.append(value)
    return known[len(taken) :]


def digits(rng: Generator, length: int) -> str:
    """A number of ``length`` digits that does not begin with 0."""
    return "".join([str(rng.integers(1, 10)), *(str(d) for d in rng.integers(0, 10, length - 1))])


def numbers(rng: Generator, count: int, length: int, taken: Sequence[str] = ()) -> list[str]:
    """``count`` different numbers of ``length`` digits, other than those taken."""
    return apart(rng, lambda: digits(rng, length), count, taken)


def listed(items: Sequence[str]) -> str:
    """Such as "a, b and c"."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def fill(template: str, **parts: str) -> str:
    """The template with its parts; "a" becomes "an" before a vowel."""
    value = parts.get("v", "")
    if value[:1].lower() in ("a", "e", "i", "o", "u"):
        template = template.replace(" a {v}", " an {v}")
    return template.format(**parts)


def assemble(
    rng: Generator, task: str, statements: Sequence[str], asked: Sequence[Asked], distractors: Sequence[str] = ()
) -> Episode:
    """The episode with distractors strewn among its statements, whose order stays."""
    total = len(statements) + len(distractors)
    places = sorted(rng.choice(total, len(statements), replace=False).tolist())
    rest = iter(distractors)
    own = dict(zip(places, statements, strict=True))
    mixed = tuple(own[i] if i in own else next(rest) for i in range(total))
    moved = tuple(replace(one, gold=tuple(places[i] for i in one.gold)) for one in asked)
    return Episode(task, mixed, moved, tuple(i for i in range(total) if i not in own))

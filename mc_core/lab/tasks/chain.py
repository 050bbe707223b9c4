"""Chains: names that stand for one another; the answer walks from the asked name to the value (RULER's tracing)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from numpy.random import Generator

from mc_core.lab.tasks.build import assemble, fresh_keys, numbers
from mc_core.lab.tasks.episode import Asked, Episode
from mc_core.lab.tasks.facts import Maker, person, pick

HOPS = 4
LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"


@dataclass(frozen=True)
class Style:
    """``{a}`` asked name, ``{b}`` the name that it leads to, ``{v}`` value. kept: question for evaluation alone.

    ordered: is the value stated first?"""

    key: Maker
    value: str
    link: str
    question: str
    kept: str
    step: str
    last: str
    ordered: bool


def _variable(rng: Generator) -> str:
    return f"{pick(rng, LETTERS)}{rng.integers(100, 1000)}"


STYLES: tuple[Style, ...] = (
    Style(
        _variable,
        "VAR {a} = {v}.",
        "VAR {a} = VAR {b}.",
        "What is {a}?",
        "Which value does {a} have?",
        "{a} is {b}",
        "{a} is {v}.",
        True,
    ),
    Style(
        _variable,
        "{a} is {v}.",
        "{a} is the same as {b}.",
        "What is {a}?",
        "Which value does {a} have?",
        "{a} is {b}",
        "{a} is {v}.",
        False,
    ),
    Style(
        person,
        "The code of {a} is {v}.",
        "{a} has the same code as {b}.",
        "What is the code of {a}?",
        "Which code does {a} have?",
        "{a} has the code of {b}",
        "the code of {a} is {v}.",
        False,
    ),
    Style(
        person,
        "{a} lives in room {v}.",
        "{a} shares a room with {b}.",
        "In which room does {a} live?",
        "Where can I find {a}?",
        "{a} lives with {b}",
        "{a} lives in room {v}.",
        False,
    ),
)


def chain(rng: Generator, held_out: bool, distractors: int) -> Episode:
    """``HOPS`` statements from a name to a value; distractors are other chains."""
    style = STYLES[int(rng.integers(len(STYLES)))]
    names = fresh_keys(rng, style.key, HOPS + distractors, held_out)
    chains = [names[i : i + HOPS] for i in range(0, len(names), HOPS)]
    values = numbers(rng, len(chains), 5)
    own = chains[0]
    order = list(range(HOPS)) if style.ordered else rng.permutation(HOPS).tolist()
    stated = _stated(style, own, values[0])
    walk, gold = _walk(style, own, values[0]), tuple(range(HOPS))
    question = style.kept if held_out and rng.random() < 0.5 else style.question
    asked = Asked(question.format(a=own[-1]), walk, (values[0],), gold, tuple(values[1:]))
    more = [line for other, value in zip(chains[1:], values[1:], strict=True) for line in _stated(style, other, value)]
    return assemble(rng, "chain", [stated[i] for i in order], [asked], more)


def _stated(style: Style, names: list[str], value: str) -> list[str]:
    """The first name's value, then each name by the one before it."""
    links = [style.link.format(a=a, b=b) for b, a in pairwise(names)]
    return [style.value.format(a=name, v=value) for name in names[:1]] + links


def _walk(style: Style, names: list[str], value: str) -> str:
    """Such as "X3 is X2, X2 is X1, X1 is 48213."."""
    back = names[::-1]
    steps = [style.step.format(a=a, b=b) for a, b in pairwise(back)]
    return ", ".join([*steps, style.last.format(a=names[0], v=value)])

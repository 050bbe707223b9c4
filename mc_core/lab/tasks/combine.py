"""Combining: a question that needs two statements, which stand at different places."""

from __future__ import annotations

from numpy.random import Generator

from mc_core.lab.tasks import word_lists
from mc_core.lab.tasks.build import assemble, fill, fresh_keys, numbers
from mc_core.lab.tasks.episode import Asked, Episode
from mc_core.lab.tasks.facts import person, pick

PERSONS = 3
TRAITS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("{k} works as a {v}.", "works as a {v}", word_lists.JOBS),
    ("{k} lives in {v}.", "lives in {v}", word_lists.CITIES),
    ("{k} drives a {v} car.", "drives a {v} car", word_lists.COLORS),
    ("{k} always eats {v}.", "always eats {v}", word_lists.FOODS),
    ("{k} likes the color {v}.", "likes the color {v}", word_lists.COLORS),
)
"""(statement, what the person does, values): a person is found by one of these ..."""
NUMBERS: tuple[tuple[str, int], ...] = (
    ("the phone number of {k}", 5),
    ("the order number of {k}", 6),
    ("the locker code of {k}", 4),
    ("the room number of {k}", 3),
)
"""... and asked for one of these, whose length in digits stands beside it."""
LEADS = ("What is", "Tell me", "Give me")
KEPT_LEAD = "I need"
"""For evaluation alone."""


def combine(rng: Generator, held_out: bool, distractors: int) -> Episode:
    """Persons with a trait and a number each: whose trait it is must be found first, or two numbers be given at once.

    Distractors are traits and numbers of other persons, so that no question has two answers.
    """
    stated, does, options = TRAITS[int(rng.integers(len(TRAITS)))]
    what, length = NUMBERS[int(rng.integers(len(NUMBERS)))]
    names = fresh_keys(rng, person, PERSONS + distractors, held_out)
    # Only as many other persons have a trait as there are values left for one.
    traits = [options[i] for i in rng.permutation(len(options))[: len(names)].tolist()]
    values = numbers(rng, len(names), length)
    trait_lines = [fill(stated, k=name, v=trait) for name, trait in zip(names, traits, strict=False)]
    number_lines = [_number(what, name, value) for name, value in zip(names, values, strict=True)]
    lines = trait_lines[:PERSONS] + number_lines[:PERSONS]
    order = rng.permutation(2 * PERSONS)
    place = {int(old): new for new, old in enumerate(order)}
    leads = (KEPT_LEAD,) if held_out and rng.random() < 0.5 else LEADS
    asked = []
    for i in rng.permutation(PERSONS)[:2].tolist():
        doing = fill(does, v=traits[i])
        question = f"{pick(rng, leads)} {what.format(k=f'the person who {doing}')}"
        answer = f"{names[i]} {doing}, and {_number(what, names[i], values[i], first=False)}"
        asked.append(_asked(question, answer, (values[i],), (place[i], place[PERSONS + i])))
    a, b = rng.permutation(PERSONS)[:2].tolist()
    both = " and ".join(what.format(k=names[i]) for i in (a, b))
    told = ", and ".join(_number(what, names[i], values[i], first=False)[:-1] for i in (a, b))
    gold = (place[PERSONS + a], place[PERSONS + b])
    asked.append(
        _asked(f"{pick(rng, leads[-2:])} {both}", f"{told[0].upper()}{told[1:]}.", (values[a], values[b]), gold)
    )
    more = [line for pair in zip(number_lines[PERSONS:], trait_lines[PERSONS:], strict=False) for line in pair]
    more += number_lines[len(trait_lines) :]
    return assemble(rng, "combine", [lines[int(i)] for i in order], asked, more[:distractors])


def _asked(question: str, answer: str, values: tuple[str, ...], gold: tuple[int, ...]) -> Asked:
    mark = "?" if question.startswith(LEADS[0]) else "."
    return Asked(question + mark, answer, values, tuple(sorted(gold)))


def _number(what: str, name: str, value: str, first: bool = True) -> str:
    said = f"{what.format(k=name)} is {value}."
    return said[0].upper() + said[1:] if first else said

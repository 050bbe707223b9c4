"""Tracking: a value that changes several times; the last one counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from numpy.random import Generator

from mc_core.lab.tasks import word_lists
from mc_core.lab.tasks.build import apart, assemble, digits, fresh_keys
from mc_core.lab.tasks.episode import Asked, Episode
from mc_core.lab.tasks.facts import Maker, person, phrase_key, pick, place

UPDATES = 3


@dataclass(frozen=True)
class Changing:
    """``{k}`` key, ``{v}`` value, ``{p}`` some name. changed: told at an update; now, before: (question, answer).

    kept: question for evaluation alone; trained: questions for the value before that training alone asks."""

    key: Maker
    first: str
    changed: tuple[str, ...]
    now: tuple[tuple[str, str], ...]
    kept: str
    before: tuple[str, str]
    trained: tuple[str, ...]
    value: Callable[[Generator], str]


def _door(rng: Generator) -> str:
    return f"{pick(rng, word_lists.ADJECTIVES)} {place(rng)}"


def _room(rng: Generator) -> str:
    return digits(rng, 3)


def _code(rng: Generator) -> str:
    return digits(rng, 5)


def _city(rng: Generator) -> str:
    return pick(rng, word_lists.CITIES)


CHANGING: tuple[Changing, ...] = (
    Changing(
        person,
        "The meeting with {k} is in room {v}.",
        ("The meeting with {k} is now in room {v}.", "{p} moved the meeting with {k} to room {v}."),
        (
            ("In which room is the meeting with {k} now?", "The meeting with {k} is now in room {v}."),
            ("Where is the meeting with {k}?", "The meeting with {k} is now in room {v}."),
            ("Which room do I need for the meeting with {k}?", "The meeting with {k} is now in room {v}."),
        ),
        "To which room must I go for the meeting with {k}?",
        (
            "In which room was the meeting with {k} before the last change?",
            "Before the last change the meeting with {k} was in room {v}.",
        ),
        (
            "In which room was the meeting with {k} before it was moved the last time?",
            "Which room did the meeting with {k} have before the present one?",
            "From which room was the meeting with {k} moved last?",
        ),
        _room,
    ),
    Changing(
        _door,
        "The door code of the {k} is {v}.",
        ("{p} changed the door code of the {k} to {v}.", "The door code of the {k} is now {v}."),
        (
            ("What is the door code of the {k} now?", "The door code of the {k} is now {v}."),
            ("What is the door code of the {k}?", "The door code of the {k} is now {v}."),
            ("How do I get into the {k}?", "The door code of the {k} is now {v}."),
        ),
        "Which code opens the door of the {k}?",
        (
            "What was the door code of the {k} before the last change?",
            "Before the last change the door code of the {k} was {v}.",
        ),
        (
            "What was the previous door code of the {k}?",
            "Which door code did the {k} have before the present one?",
            "How did I get into the {k} before the code was changed the last time?",
        ),
        _code,
    ),
    Changing(
        phrase_key,
        "The price of the {k} is {v}.",
        ("The price of the {k} went to {v}.", "{p} set the price of the {k} to {v}."),
        (
            ("What is the price of the {k} now?", "The price of the {k} is now {v}."),
            ("How much is the {k}?", "The price of the {k} is now {v}."),
            ("What does the {k} cost?", "The price of the {k} is now {v}."),
        ),
        "What do I pay for the {k}?",
        (
            "What was the price of the {k} before the last change?",
            "Before the last change the price of the {k} was {v}.",
        ),
        (
            "What was the previous price of the {k}?",
            "How much was the {k} before the last change?",
            "What did the {k} cost before the price was changed the last time?",
        ),
        _room,
    ),
    Changing(
        person,
        "{k} is in {v}.",
        ("{k} went on to {v}.", "{k} has now moved to {v}."),
        (
            ("Where is {k} now?", "{k} is now in {v}."),
            ("In which city is {k}?", "{k} is now in {v}."),
            ("Where can I meet {k}?", "{k} is now in {v}."),
        ),
        "Which city can I find {k} in?",
        ("Where was {k} before the last move?", "Before the last move {k} was in {v}."),
        (
            "In which city was {k} before the present one?",
            "Where did {k} come from at the last move?",
            "Which city did {k} leave last?",
        ),
        _city,
    ),
)


def tracking(rng: Generator, held_out: bool, distractors: int) -> Episode:
    """A value and its updates; asked are the present one and the one before it. Distractors are other things."""
    thing = CHANGING[int(rng.integers(len(CHANGING)))]
    keys = fresh_keys(rng, thing.key, 1 + distractors, held_out)
    # A city may also be somebody's name.
    values = apart(rng, lambda: thing.value(rng), UPDATES + 1, keys[:1])
    changes = [_told(rng, thing, keys[0], value, pick(rng, thing.changed)) for value in values[1:]]
    stated = [_told(rng, thing, keys[0], values[0], thing.first), *changes]
    question, answer = thing.now[int(rng.integers(len(thing.now)))]
    question = thing.kept if held_out and rng.random() < 0.5 else question
    was, told = thing.before
    was = was if held_out or rng.random() < 0.5 else pick(rng, thing.trained)
    asked = [
        _asked(keys[0], question, answer, values, (UPDATES,)),
        _asked(keys[0], was, told, values, (UPDATES - 1, UPDATES)),
    ]
    templates = (thing.first, *thing.changed)
    more = [_told(rng, thing, key, thing.value(rng), pick(rng, templates)) for key in keys[1:]]
    return assemble(rng, "tracking", stated, asked, more)


def _asked(key: str, question: str, answer: str, values: list[str], gold: tuple[int, ...]) -> Asked:
    right = values[gold[0]]
    wrong = tuple(value for value in values if value != right)
    return Asked(question.format(k=key), answer.format(k=key, v=right), (right,), gold, wrong)


def _told(rng: Generator, thing: Changing, key: str, value: str, template: str) -> str:
    return template.format(k=key, v=value, p=pick(rng, word_lists.NAMES))

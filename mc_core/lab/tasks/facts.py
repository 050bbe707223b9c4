"""Made-up facts: how they are stated, asked for and answered. The recall tasks are built from them.

Templates in the manner of RULER (arXiv 2404.06654) and of passkey tests, and everyday ones. Every answer states the
key right before the value, as most people do, or, when asked to, the value alone.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from numpy.random import Generator

from mc_core.lab.tasks import word_lists

Maker = Callable[[Generator], str]
HELD_OUT_KEYS = 16
"""One key in so many is never used in training, so that evaluation asks for keys that were never seen."""


def pick(rng: Generator, options: Sequence[str]) -> str:
    """One of several strings."""
    return options[int(rng.integers(len(options)))]


def pair_key(rng: Generator) -> str:
    """A key such as "vague-lantern", RULER's kind."""
    return f"{pick(rng, word_lists.ADJECTIVES)}-{pick(rng, word_lists.NOUNS)}"


def phrase_key(rng: Generator) -> str:
    """A key such as "vague lantern"."""
    return f"{pick(rng, word_lists.ADJECTIVES)} {pick(rng, word_lists.NOUNS)}"


def person(rng: Generator) -> str:
    """A full name."""
    return f"{pick(rng, word_lists.NAMES)} {pick(rng, word_lists.SURNAMES)}"


def place(rng: Generator) -> str:
    """A thing of a town, such as "library in Oslo"."""
    return f"{pick(rng, word_lists.THINGS)} in {pick(rng, word_lists.CITIES)}"


def no_key(rng: Generator) -> str:
    """For facts of which there is only one."""
    return ""


def held_out_key(key: str) -> bool:
    """Is this key kept for evaluation?"""
    return bool(key) and zlib.crc32(key.encode()) % HELD_OUT_KEYS == 0


@dataclass(frozen=True)
class FactKind:
    """``{k}`` key, ``{v}`` value. ``asked[i]`` = (question, answer); ``kept`` templates are for evaluation alone."""

    name: str
    key: Maker
    stated: tuple[str, ...]
    asked: tuple[tuple[str, str], ...]
    value: str = "digits"
    kept_stated: tuple[str, ...] = ()
    kept_asked: tuple[tuple[str, str], ...] = ()


_MAGIC = "The special magic number for {k} mentioned in the provided text is {v}."
_MAGIC_ASKED = "What is the special magic number for {k} mentioned in the provided text?"
MAGIC = FactKind(
    "magic",
    pair_key,
    ("One of the special magic numbers for {k} is: {v}.",),
    (
        (_MAGIC_ASKED, _MAGIC),
        (f"{_MAGIC_ASKED} The special magic number for {{k}} mentioned in the provided text is", "{v}"),
        ("The special magic number for {k} mentioned in the provided text is", "{v}"),
        ("What is the special magic number for {k}?", "The special magic number for {k} is {v}."),
        ("What is the magic number for {k}? Reply with the number only.", "{v}"),
    ),
    kept_asked=(("Tell me the special magic number for {k}.", "The special magic number for {k} is {v}."),),
)
KINDS: tuple[FactKind, ...] = (
    MAGIC,
    FactKind(
        "magic_plain",
        pair_key,
        ("The magic number for {k} is {v}.", "The magic number of {k} is: {v}.", "{k} has the magic number {v}."),
        (
            ("What is the magic number for {k}?", "The magic number for {k} is {v}."),
            ("Do you remember the magic number for {k}?", "Yes, the magic number for {k} is {v}."),
            ("The magic number for {k} is", "{v}"),
        ),
        kept_stated=("Remember that the magic number for {k} is {v}.",),
    ),
    FactKind(
        "pass_key",
        no_key,
        ("The pass key is {v}. Remember it. {v} is the pass key.", "The pass key is {v}."),
        (
            ("What is the pass key?", "The pass key is {v}."),
            ("What is the pass key? The pass key is", "{v}"),
            ("The pass key is", "{v}"),
        ),
    ),
    FactKind(
        "named_key",
        pair_key,
        ("The pass key for {k} is {v}. Remember it. {v} is the pass key for {k}.", "The pass key for {k} is {v}."),
        (("What is the pass key for {k}?", "The pass key for {k} is {v}."), ("The pass key for {k} is", "{v}")),
    ),
    FactKind(
        "code",
        phrase_key,
        ("The code of the {k} is {v}.", "The secret code of the {k} is {v}.", "Note: the code for the {k} is {v}."),
        (
            ("What is the code of the {k}?", "The code of the {k} is {v}."),
            ("What is the secret code of the {k}?", "The secret code of the {k} is {v}."),
            ("Which code does the {k} have? Reply with the code only.", "{v}"),
        ),
        kept_stated=("Keep in mind that the code of the {k} is {v}.",),
    ),
    FactKind(
        "room",
        person,
        ("{k} lives in room {v}.", "Please note that {k} stays in room {v}.", "You will find {k} in room {v}."),
        (
            ("In which room does {k} live?", "{k} lives in room {v}."),
            ("Where can I find {k}?", "You will find {k} in room {v}."),
        ),
    ),
    FactKind(
        "phone",
        person,
        ("The phone number of {k} is {v}.", "You can call {k} at {v}.", "{k}'s phone number is {v}."),
        (
            ("What is {k}'s phone number?", "{k}'s phone number is {v}."),
            ("What is the phone number of {k}?", "The phone number of {k} is {v}."),
            ("How can I call {k}?", "You can call {k} at {v}."),
        ),
    ),
    FactKind(
        "place_code",
        place,
        ("The door code of the {k} is {v}.", "To open the {k}, use the code {v}."),
        (
            ("What is the door code of the {k}?", "The door code of the {k} is {v}."),
            ("How do I open the {k}?", "To open the {k}, use the code {v}."),
        ),
    ),
    FactKind(
        "order",
        person,
        ("The order number of {k} is {v}.", "{k} placed order {v}."),
        (("What is the order number of {k}?", "The order number of {k} is {v}."),),
        value="code",
    ),
    FactKind(
        "word",
        pair_key,
        ("One of the special magic words for {k} is: {v}.", "The password for {k} is {v}."),
        (
            ("What is the special magic word for {k}?", "The special magic word for {k} is {v}."),
            ("What is the password for {k}?", "The password for {k} is {v}."),
        ),
        value="word",
    ),
    FactKind(
        "city",
        person,
        ("{k} lives in {v}.", "{k} moved to {v} last year."),
        (("Where does {k} live?", "{k} lives in {v}."), ("Which city does {k} live in?", "{k} lives in {v}.")),
        value="city",
    ),
    FactKind(
        "job",
        person,
        ("{k} works as a {v}.", "{k} became a {v}."),
        (("What does {k} do for a living?", "{k} works as a {v}."), ("What is {k}'s job?", "{k} works as a {v}.")),
        value="job",
    ),
)

PERSONAL: tuple[FactKind, ...] = (
    FactKind(
        "my_name",
        no_key,
        ("My name is {v}.", "Hi, I'm {v}.", "I am {v}, nice to meet you."),
        (("What is my name?", "Your name is {v}."), ("Do you remember my name?", "Yes, your name is {v}.")),
        value="name",
    ),
    FactKind(
        "my_city",
        no_key,
        ("I live in {v}.", "My home is in {v}.", "I moved to {v}."),
        (("Where do I live?", "You live in {v}."), ("Which city do I live in?", "You live in {v}.")),
        value="city",
    ),
    FactKind(
        "my_color",
        no_key,
        ("My favorite color is {v}.", "I like the color {v} best."),
        (("What is my favorite color?", "Your favorite color is {v}."),),
        value="color",
    ),
    FactKind(
        "my_food",
        no_key,
        ("My favorite food is {v}.", "I love {v} more than any other food."),
        (("What is my favorite food?", "Your favorite food is {v}."),),
        value="food",
    ),
    FactKind(
        "my_dog",
        no_key,
        ("My dog is called {v}.", "My dog's name is {v}.", "I have a dog. His name is {v}."),
        (("What is my dog called?", "Your dog is called {v}."), ("What is my dog's name?", "Your dog's name is {v}.")),
        value="name",
    ),
    FactKind(
        "my_job",
        no_key,
        ("I work as a {v}.", "I am a {v}."),
        (("What is my job?", "You work as a {v}."), ("What do I do for a living?", "You work as a {v}.")),
        value="job",
    ),
    FactKind(
        "my_number",
        no_key,
        ("My lucky number is {v}.", "My phone number is {v}.", "Please remember this number: {v}."),
        (("Which number did I tell you?", "You told me the number {v}."),),
    ),
)


def make_value(rng: Generator, kind: str, digits: tuple[int, int]) -> str:
    """A value; ``digits`` bounds the length of numbers and codes."""
    length = int(rng.integers(digits[0], digits[1] + 1))
    if kind == "digits":
        return "".join(str(d) for d in rng.integers(0, 10, length))
    if kind == "code":
        letters = "".join(pick(rng, "ABCDEFGHJKLMNPQRSTUVWXYZ") for _ in range(2))
        return f"{letters}-{''.join(str(d) for d in rng.integers(0, 10, length))}"
    if kind == "word":
        return pick(rng, word_lists.NOUNS)
    lists = {
        "city": word_lists.CITIES,
        "name": word_lists.NAMES,
        "color": word_lists.COLORS,
        "food": word_lists.FOODS,
        "job": word_lists.JOBS,
    }
    return pick(rng, lists[kind])


@dataclass(frozen=True)
class Fact:
    """A statement with one question and its answer; ``value`` occurs in statement and answer.

    key: what tells it from other facts of its kind; empty for a kind of which there is only one fact.
    """

    kind: str
    key: str
    stated: str
    question: str
    answer: str
    value: str

    @property
    def about(self) -> tuple[str, str]:
        """What no two facts of a sample may share, or a question would have two answers."""
        return self.kind, self.key


REQUESTS = ("Give me {x}.", "Remind me of {x}.", "Do you know {x}?", "Repeat {x}.")
TELL_ME = ("Tell me {x}.", "Please tell me {x}.", "Can you tell me {x}?")
"""What people say in place of "What is {x}?". Special magic numbers are asked for by "Tell me" in evaluation alone."""


def reworded(rng: Generator, question: str) -> str:
    """Half of the time a request in place of "What is the ..?"; a question in training, never one of evaluation."""
    found = re.fullmatch(r"What (?:is|are|was|were) ((?:the|all the) [^?]*)\?", question)
    if found is None or rng.random() < 0.5:
        return question
    requests = REQUESTS if "special magic" in question else REQUESTS + TELL_ME
    return pick(rng, requests).format(x=found[1])


def look_alike(rng: Generator, key: str, other: str) -> str:
    """``key`` with one of its halves taken from ``other``; ``key`` itself if they are not of one form."""
    for between in (" in ", "-", " "):
        if between in key and between in other:
            (a, b), (c, d) = key.split(between, 1), other.split(between, 1)
            return f"{a}{between}{d}" if rng.random() < 0.5 else f"{c}{between}{b}"
    return key


def make_fact(
    rng: Generator, kind: FactKind, digits: tuple[int, int], held_out: bool = False, near: str | None = None
) -> Fact:
    """A fact of one kind. With ``held_out`` the key (and any template kept for that) is one training never uses.

    near: a key that this one is to share a word with, as blocks that a lens opens for their words do.
    """
    while True:
        key = kind.key(rng) if near is None else look_alike(rng, kind.key(rng), near)
        if not key or held_out_key(key) == held_out:
            break
    value = make_value(rng, kind.value, digits)
    stated = kind.kept_stated if held_out and kind.kept_stated and rng.random() < 0.5 else kind.stated
    asked = kind.kept_asked if held_out and kind.kept_asked and rng.random() < 0.5 else kind.asked
    question, answer = asked[int(rng.integers(len(asked)))]
    question = question if held_out else reworded(rng, question)
    said, question, answer = (t.format(k=key, v=value) for t in (pick(rng, stated), question, answer))
    return Fact(kind.name, key, said, question, answer, value)

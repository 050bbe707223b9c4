"""Needles: values that must be recalled as they were stated, by key (RULER, arXiv 2404.06654; pass key tests)."""

from __future__ import annotations

from uuid import UUID

from numpy.random import Generator

from mc_core.lab.tasks.build import apart, assemble, digits, fresh_keys, listed, numbers
from mc_core.lab.tasks.episode import Asked, Episode
from mc_core.lab.tasks.facts import pair_key

DIGITS = 7
MULTIKEY, UUIDS, VALUES, ASKED = 8, 4, 4, 3
TRAINED_VALUES = (2, 5)
"""Fewest and most values of one key in training: who has only met four does not look where a list ends."""
NEEDLE = "One of the special magic {what} for {k} is: {v}."
QUESTIONS = (
    (
        "What is the special magic {one} for {k} mentioned in the provided text?",
        "The special magic {one} for {k} mentioned in the provided text is {v}.",
    ),
    ("What is the special magic {one} for {k}?", "The special magic {one} for {k} is {v}."),
)
TRAINED_QUESTIONS = (
    ("Name the special magic {one} for {k}.", "The special magic {one} for {k} is {v}."),
    ("Write down the special magic {one} for {k}.", "The special magic {one} for {k} is {v}."),
    ("Which special magic {one} does {k} have?", "The special magic {one} for {k} is {v}."),
)
"""For training alone: the verbs that ask for all ask for one as well, so that a verb does not tell which it is."""
KEPT_QUESTIONS = (("Tell me the special magic {one} for {k}.", "The special magic {one} for {k} is {v}."),)
ALL_QUESTIONS = (
    (
        "What are all the special magic numbers for {k} mentioned in the provided text?",
        "The special magic numbers for {k} mentioned in the provided text are {v}.",
    ),
    ("What are all the special magic numbers for {k}?", "The special magic numbers for {k} are {v}."),
)
TRAINED_ALL_QUESTIONS = (
    ("Which special magic numbers does {k} have?", "The special magic numbers for {k} are {v}."),
    ("Tell me each special magic number for {k}.", "The special magic numbers for {k} are {v}."),
    ("Name the special magic numbers for {k}, all of them.", "The special magic numbers for {k} are {v}."),
    ("Name each special magic number for {k}.", "The special magic numbers for {k} are {v}."),
    ("Tell me all special magic numbers for {k}.", "The special magic numbers for {k} are {v}."),
    ("Give me every special magic number for {k}.", "The special magic numbers for {k} are {v}."),
    ("List all special magic numbers for {k}.", "The special magic numbers for {k} are {v}."),
    ("List the special magic numbers for {k}, each of them.", "The special magic numbers for {k} are {v}."),
    ("Enumerate every special magic number for {k}.", "The special magic numbers for {k} are {v}."),
    ("Write down every special magic number for {k}.", "The special magic numbers for {k} are {v}."),
    ("I want all the special magic numbers for {k}.", "The special magic numbers for {k} are {v}."),
)
"""For training alone: who has met few ways to ask for all takes a new one for a question about one."""
KEPT_ALL_QUESTIONS = (("List every special magic number for {k}.", "The special magic numbers for {k} are {v}."),)
PASS_KEY = (
    ("The pass key is {v}. Remember it. {v} is the pass key.", "What is the pass key?"),
    ("The pass key is {v}. Remember it. {v} is the pass key.", "Which pass key did I tell you?"),
    ("Remember that the pass key is {v}. I say it again: the pass key is {v}.", "What is the pass key?"),
    ("Remember that the pass key is {v}. I say it again: the pass key is {v}.", "Which pass key did I tell you?"),
)
"""Pairs of statement and question; a pass key has no key to hold out, so the first pair is for evaluation alone."""


def passkey(rng: Generator, held_out: bool, distractors: int) -> Episode:
    """The pass key, stated twice in one line."""
    stated, question = PASS_KEY[0 if held_out else int(rng.integers(1, len(PASS_KEY)))]
    value = digits(rng, 5)
    asked = Asked(question, f"The pass key is {value}.", (value,), (0,))
    more = _more(rng, held_out, distractors, values=(value,))
    return assemble(rng, "passkey", [stated.format(v=value)], [asked], more)


def needle(rng: Generator, held_out: bool, distractors: int) -> Episode:
    """One magic number."""
    return _keyed(rng, "needle", ("number", "numbers"), held_out, 1, distractors)


def multikey(rng: Generator, held_out: bool, distractors: int) -> Episode:
    """Magic numbers of several look-alike keys; some of the keys are asked for."""
    return _keyed(rng, "multikey", ("number", "numbers"), held_out, MULTIKEY, distractors)


def uuid(rng: Generator, held_out: bool, distractors: int) -> Episode:
    """Magic uuids of several keys."""
    return _keyed(rng, "uuid", ("uuid", "uuids"), held_out, UUIDS, distractors)


def multivalue(rng: Generator, held_out: bool, distractors: int) -> Episode:
    """Several magic numbers of one key, all of them asked for: ``VALUES``, in training ``TRAINED_VALUES``."""
    (key,) = fresh_keys(rng, pair_key, 1, held_out)
    count = VALUES if held_out else int(rng.integers(TRAINED_VALUES[0], TRAINED_VALUES[1] + 1))
    values = numbers(rng, count, DIGITS)
    question, answer = _pick(rng, ALL_QUESTIONS, KEPT_ALL_QUESTIONS if held_out else TRAINED_ALL_QUESTIONS)
    reply = answer.format(k=key, v=listed(values))
    asked = Asked(question.format(k=key), reply, tuple(values), tuple(range(count)))
    more = _more(rng, held_out, distractors, (key,), tuple(values))
    return assemble(rng, "multivalue", [_stated("numbers", key, v) for v in values], [asked], more)


def make_uuid(rng: Generator) -> str:
    """A random uuid of version 4."""
    return str(UUID(bytes=rng.bytes(16), version=4))


def _keyed(rng: Generator, task: str, names: tuple[str, str], held_out: bool, count: int, distractors: int) -> Episode:
    one, what = names
    keys = fresh_keys(rng, pair_key, count, held_out)
    values = apart(rng, lambda: make_uuid(rng), count) if one == "uuid" else numbers(rng, count, DIGITS)
    asked = []
    for i in rng.permutation(count)[:ASKED].tolist():
        question, answer = _pick(rng, QUESTIONS, KEPT_QUESTIONS if held_out else TRAINED_QUESTIONS)
        parts = {"k": keys[i], "v": values[i], "one": one}
        asked.append(Asked(question.format(**parts), answer.format(**parts), (values[i],), (i,)))
    stated = [_stated(what, key, value) for key, value in zip(keys, values, strict=True)]
    return assemble(rng, task, stated, asked, _more(rng, held_out, distractors, tuple(keys), tuple(values), what))


def _pick(rng: Generator, common: tuple[tuple[str, str], ...], own: tuple[tuple[str, str], ...]) -> tuple[str, str]:
    """Question and answer; half of them in words that one side of the split has for itself, evaluation or training."""
    chosen = own if rng.random() < 0.5 else common
    return chosen[int(rng.integers(len(chosen)))]


def _stated(what: str, key: str, value: str) -> str:
    return NEEDLE.format(what=what, k=key, v=value)


def _more(
    rng: Generator,
    held_out: bool,
    count: int,
    keys: tuple[str, ...] = (),
    values: tuple[str, ...] = (),
    what: str = "numbers",
) -> list[str]:
    """Needles of other keys."""
    others = fresh_keys(rng, pair_key, count, held_out, keys)
    if what == "uuids":
        return [_stated(what, key, make_uuid(rng)) for key in others]
    return [_stated(what, *pair) for pair in zip(others, numbers(rng, count, DIGITS, values), strict=True)]

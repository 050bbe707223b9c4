"""Absent: questions about things that were never stated, while others that look like them were.

Stated ones are asked for as well, in the same words: otherwise the wording would tell which it is.
"""

from __future__ import annotations

from numpy.random import Generator

from mc_core.lab.tasks.build import assemble, fresh_keys, numbers
from mc_core.lab.tasks.episode import Asked, Episode
from mc_core.lab.tasks.facts import KINDS, Maker, held_out_key, look_alike, pair_key, person, phrase_key, pick

STATED, ASKED = 4, 2
NOT_MENTIONED = "not mentioned"
REPLIES = ("That is not mentioned.", "This is not mentioned in the text.", "Sorry, that was not mentioned.")
"""Training has the first alone: with three ways to begin a reply, each is less likely than a value that is made up
until the model is sure by three to one, and the likeliest token is what a reply is begun with."""
CROSSED = 0.5
KINDS_ASKED = tuple(kind for kind in KINDS if kind.value == "digits" and kind.key in (pair_key, phrase_key, person))


def absent(rng: Generator, held_out: bool, distractors: int) -> Episode:
    """Numbers of look-alike keys, and questions about keys that share a word with them but have none."""
    kind = KINDS_ASKED[int(rng.integers(len(KINDS_ASKED)))]
    keys = fresh_keys(rng, kind.key, STATED + distractors, held_out)
    values = numbers(rng, len(keys), 5)
    templates = kind.stated + (kind.kept_stated if held_out else ())
    stated = [pick(rng, templates).format(k=key, v=value) for key, value in zip(keys, values, strict=True)]
    # An unfinished sentence asks for a value and nothing else.
    questions = [(question, answer) for question, answer in kind.asked if question[-1] in "?."]
    replies = REPLIES if held_out else REPLIES[:1]
    asked = []
    for key, known in zip(_near(rng, kind.key, keys, held_out), rng.permutation(STATED)[:ASKED].tolist(), strict=True):
        question, _ = questions[int(rng.integers(len(questions)))]
        asked.append(Asked(question.format(k=key), pick(rng, replies), (NOT_MENTIONED,), (), tuple(values)))
        question, answer = questions[int(rng.integers(len(questions)))]
        key, value = keys[known], values[known]
        asked.append(Asked(question.format(k=key), answer.format(k=key, v=value), (value,), (known,)))
    return assemble(rng, "absent", stated[:STATED], asked, stated[STATED:])


def _near(rng: Generator, make: Maker, keys: list[str], held_out: bool) -> list[str]:
    """``ASKED`` keys other than ``keys``, each of which shares a word with one of them.

    In training about half share both words, with two of them: a word that was never said must not be needed to tell.
    """
    found: list[str] = []
    while len(found) < ASKED:
        crossed = not held_out and rng.random() < CROSSED
        key = look_alike(rng, pick(rng, keys) if crossed else make(rng), pick(rng, keys))
        if key not in keys and key not in found and held_out_key(key) == held_out:
            found.append(key)
    return found

"""Paraphrases: questions that share no content word with the statement, so that only its meaning finds it."""

from __future__ import annotations

import zlib
from functools import cache, partial

from numpy.random import Generator

from mc_core.lab.tasks.build import apart, assemble, fill
from mc_core.lab.tasks.concepts import CONCEPTS, Concept
from mc_core.lab.tasks.concepts.values import concept_value
from mc_core.lab.tasks.episode import Asked, Episode

STATED, ASKED = 4, 3
HELD_OUT_PAIRS = 4
"""About one pair of wordings in so many is for evaluation alone."""

Pair = tuple[str, str]


@cache
def pairs(concept: Concept, held_out: bool) -> tuple[Pair, ...]:
    """(statement, question) wordings of one side of the split; each wording has a pair in training, so no word is new.

    Pairs are held out by their hash, at least one of a concept.
    """
    hashes = {(s, q): zlib.crc32(f"{s}|{q}".encode()) for s in concept.stated for q in concept.asked}
    left = sorted(hashes, key=lambda pair: (hashes[pair] % HELD_OUT_PAIRS, hashes[pair]))
    kept: list[Pair] = []
    for pair in list(left):
        rest = [other for other in left if other != pair]
        seen = any(s == pair[0] for s, _ in rest) and any(q == pair[1] for _, q in rest)
        if seen and (not kept or hashes[pair] % HELD_OUT_PAIRS == 0):
            left.remove(pair)
            kept.append(pair)
    return tuple(kept if held_out else left)


def paraphrase(rng: Generator, held_out: bool, distractors: int) -> Episode:
    """Several things said in some words, some of them asked for in others. Distractors are further concepts.

    No two concepts of an episode could be taken for one another, so there are at most as many as there are groups.
    """
    concepts = _unlike(rng, STATED + distractors)
    chosen = [_pick(rng, pairs(concept, held_out)) for concept in concepts]
    values: list[str] = []
    for concept in concepts:
        # A lost "coat" beside "My coat is red." would stand in two statements.
        taken = [*values, *(said for said, _ in chosen)]
        values += apart(rng, partial(concept_value, rng, concept.kind), 1, taken)
    stated = [fill(pair[0], v=value) for pair, value in zip(chosen, values, strict=True)]
    asked = [
        Asked(chosen[i][1], fill(concepts[i].answer, v=values[i]), (values[i],), (i,))
        for i in rng.permutation(STATED)[:ASKED].tolist()
    ]
    return assemble(rng, "paraphrase", stated[:STATED], asked, stated[STATED:])


def _unlike(rng: Generator, count: int) -> list[Concept]:
    """``count`` concepts at most, in random order, one of a group."""
    found: dict[str, Concept] = {}
    for i in rng.permutation(len(CONCEPTS)):
        found.setdefault(CONCEPTS[i].family, CONCEPTS[i])
    return list(found.values())[:count]


def _pick(rng: Generator, options: tuple[Pair, ...]) -> Pair:
    return options[int(rng.integers(len(options)))]

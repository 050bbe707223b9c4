"""Concepts: questions share no content word with statements, and pairs of wordings are split."""

import re
from collections import Counter

import numpy as np
import pytest

from mc_core.lab.tasks.concepts import CONCEPTS
from mc_core.lab.tasks.concepts.values import KINDS, LISTS, concept_value
from mc_core.lab.tasks.make import make_episode
from mc_core.lab.tasks.paraphrase import pairs

STOP_WORDS = (
    "a about after all am an and any are as at be been before being by can cannot did do does each every everything "
    "for from get had has have he her his how i if in into is it its many may me mine more most much must my no "
    "none nothing now of off on one or other others our out over she should since so some than that the their them "
    "then there they this to under until up us was we were what when where which who whom whose will with would you "
    "your"
)
STOP = frozenset(STOP_WORDS.split())


def stem(word):
    """Without plural s and endings of verbs, so that "called" and "call" are one word."""
    word = word.removesuffix("'s")
    for ending in ("ing", "ied", "ies", "ed", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word.removesuffix(ending)
            break
    word = word.rstrip("ey") if len(word) > 3 else word
    return word[:-1] if len(word) > 3 and word[-1] == word[-2] else word


def content(text):
    found = re.findall(r"[a-z0-9]+(?:'s)?", text.replace("{v}", " ").casefold())
    return {stem(word) for word in found if word not in STOP}


@pytest.mark.parametrize("concept", CONCEPTS, ids=lambda concept: concept.name)
def test_a_question_shares_no_content_word_with_a_statement(concept):
    """For every pair of wordings, and for every value that a statement may hold."""
    assert min(len(concept.stated), len(concept.asked)) >= 3
    values = {stem(value.casefold()) for value in LISTS.get(concept.kind, ())}
    for question in concept.asked:
        words = content(question)
        assert words, question
        for statement in concept.stated:
            assert not words & content(statement), (statement, question)
        assert not words & values, question
        assert "{" not in question


def test_the_stemmer_sees_inflected_words():
    """The law would be worth nothing if "called" and "call" counted as different."""
    for a, b in (("called", "call"), ("dogs", "dog"), ("working", "work"), ("baked", "bake"), ("mother's", "mother")):
        assert stem(a) == stem(b)
    assert content("My dog is called Rex.") & content("What do I call my pet?")


@pytest.mark.parametrize("concept", CONCEPTS, ids=lambda concept: concept.name)
def test_pairs_of_wordings_are_split(concept):
    """Each pair is either for training or for evaluation; some of each concept are held out, and no wording is."""
    train, kept = (set(pairs(concept, held_out)) for held_out in (False, True))
    assert not train & kept
    assert train | kept == {(s, q) for s in concept.stated for q in concept.asked}
    assert kept
    assert {s for s, _ in train} == set(concept.stated)
    assert {q for _, q in train} == set(concept.asked)


def test_about_a_quarter_of_the_pairs_is_held_out():
    """Enough of them to measure with, few enough to train with."""
    train, kept = (sum(len(pairs(c, held_out)) for c in CONCEPTS) for held_out in (False, True))
    assert 0.18 < kept / (kept + train) < 0.32


def test_concepts_are_many_and_sound():
    """Names are unique, kinds exist, and statements and answers hold the value once; wordings are of one concept."""
    assert len(CONCEPTS) >= 80
    assert max(Counter(c.name for c in CONCEPTS).values()) == 1
    statements = Counter(s for c in CONCEPTS for s in c.stated)
    assert {s for s, n in statements.items() if n > 1} == {"I was born in {v}."}
    for concept in CONCEPTS:
        assert concept.kind in KINDS
        assert all(text.count("{v}") == 1 for text in (*concept.stated, concept.answer))


def test_a_question_means_one_concept_of_an_episode():
    """Concepts that share a question are of one group, so that no episode holds both."""
    families = {}
    for concept in CONCEPTS:
        for question in concept.asked:
            families.setdefault(question, set()).add(concept.family)
    assert all(len(found) == 1 for found in families.values())


def test_episodes_ask_in_pairs_of_their_side():
    """A held-out episode asks in held-out pairs alone, a training episode in training pairs alone."""
    for held_out in (False, True):
        allowed = {pair for c in CONCEPTS for pair in pairs(c, held_out)}
        rng = np.random.default_rng(5)
        for _ in range(100):
            episode = make_episode(rng, "paraphrase", held_out, 3)
            for asked in episode.asked:
                said = episode.statements[asked.gold[0]].replace(asked.values[0], "{v}").replace(" an {v}", " a {v}")
                assert (said, asked.question) in allowed


def test_values_are_of_their_kind():
    """Every kind gives values; numbers have their digits."""
    rng = np.random.default_rng(1)
    for kind in KINDS:
        value = concept_value(rng, kind)
        assert value
        if kind.startswith("digits_"):
            assert len(value) == int(kind[-1])
            assert value.isdigit()

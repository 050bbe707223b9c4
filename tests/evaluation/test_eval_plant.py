"""Planting: every statement stands where the history says, in order, and no question has two answers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mc_core.bundle.bundle import Bundle
from mc_core.errors import ConfigError
from mc_core.lab.tasks.episode import Asked, Episode
from mc_core.lab.tasks.filler import Filler
from mc_core.lab.tasks.history import all_open, blocks_of
from mc_core.lab.tasks.keys import keys_of
from mc_core.lab.tasks.make import TASKS, make_episode
from mc_core.lab.tasks.plant import PLANTED_SHARE, SUITES, PlantPlan, plant

PLAN = PlantPlan(24_000, tuple(SUITES), trials=6, depths=5, histories=6)


def test_every_gold_statement_stands_where_its_span_says(bundle: Bundle, filler: Filler) -> None:
    """The text of each span is a statement that holds a value of its question; lengths are exact; nothing overlaps."""
    for history in plant(np.random.default_rng(3), bundle.tokenizer, filler, PLAN):
        assert len(history) == PLAN.length
        assert sum(end - start for start, end in history.spans) <= PLANTED_SHARE * PLAN.length
        ordered = sorted(history.spans)
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(ordered))
        pieces = history.pieces()
        assert [piece[0] for piece in pieces[1:]] == [piece[1] for piece in pieces[:-1]]
        assert (pieces[0][0], pieces[-1][1]) == (0, PLAN.length)
        for question in history.questions:
            texts = [bundle.tokenizer.decode(history.ids[slice(*history.spans[i])]) for i in question.gold]
            assert all(text.startswith(" ") for text in texts)
            if question.gold:
                assert all(any(value in text for text in texts) for value in question.asked.values)
                starts = [history.spans[i][0] for i in question.gold]
                assert question.depth == pytest.approx(np.mean(starts) / PLAN.length)
                if question.task in ("tracking", "chain", "multivalue"):
                    assert starts == sorted(starts)


def test_no_other_statement_answers(bundle: Bundle, filler: Filler) -> None:
    """A needle's key stands in its own statement alone, and a history holds one pass key."""
    histories = plant(np.random.default_rng(4), bundle.tokenizer, filler, PLAN)
    for history in histories:
        texts = [bundle.tokenizer.decode(history.ids[slice(*span)]) for span in history.spans]
        for question in history.questions:
            if question.task in ("needle", "multikey", "uuid"):
                key = next(word for word in question.asked.question.rstrip("?.").split() if "-" in word)
                holding = [i for i, text in enumerate(texts) if key in text]
                assert holding == list(question.gold)
        assert sum(question.suite == "passkey" for question in history.questions) <= 1
    counts = [sum(q.suite == suite for h in histories for q in h.questions) for suite in SUITES]
    assert counts == [6] * len(SUITES)
    assert len(histories) == 6


def test_fewer_histories_mean_fewer_pass_keys(bundle: Bundle, filler: Filler) -> None:
    """The limit holds: what has no key of its own is asked once a history."""
    plan = PlantPlan(4000, ("passkey",), trials=5, histories=2)
    histories = plant(np.random.default_rng(0), bundle.tokenizer, filler, plan)
    assert [len(history.questions) for history in histories] == [1, 1]


@settings(max_examples=60, deadline=None)
@given(task=st.sampled_from(TASKS), seed=st.integers(0, 10_000))
def test_an_episode_clashes_with_itself(task: str, seed: int) -> None:
    """Keys are found in every kind of episode, the same ones each time; another task has others."""
    episode = make_episode(np.random.default_rng(seed), task, held_out=True)
    assert keys_of(episode)
    assert keys_of(episode) == keys_of(Episode(task, episode.statements[::-1], episode.asked))
    assert not keys_of(episode) & keys_of(Episode("other", ("Nothing.",), (Asked("Why?", "", ("x",), ()),)))


def test_depths_are_spread(bundle: Bundle, filler: Filler) -> None:
    """As many needles as cells: each cell of the grid gets one."""
    plan = PlantPlan(8000, ("needle",), trials=8, depths=8)
    (history,) = plant(np.random.default_rng(0), bundle.tokenizer, filler, plan)
    depths = sorted(question.depth for question in history.questions if question.depth is not None)
    assert all(abs(depth - (i + 0.5) / 8) < 0.12 for i, depth in enumerate(depths))


@pytest.mark.parametrize(("field", "settings"), [("lengths", {"length": 64}), ("trials", {"trials": 0})])
def test_impossible_plans(bundle: Bundle, filler: Filler, field: str, settings: dict[str, int]) -> None:
    """A history too short for its episodes, or no trial: the message names the setting."""
    chosen = {"length": 4000, "suites": ("multikey",), "trials": 1, **settings}
    with pytest.raises(ConfigError, match=field):
        plant(np.random.default_rng(0), bundle.tokenizer, filler, PlantPlan(**chosen))  # type: ignore[arg-type]


@given(
    spans=st.lists(st.tuples(st.integers(0, 300), st.integers(1, 90)), max_size=4),
    raw=st.sets(st.integers(0, 30)),
    size=st.sampled_from([16, 32]),
)
def test_open_means_every_token(spans: list[tuple[int, int]], raw: set[int], size: int) -> None:
    """``all_open`` says what asking each token of the spans for its block says."""
    ranges = [(start, start + length) for start, length in spans]
    tokens = {token for start, end in ranges for token in range(start, end)}
    blocks = np.array(sorted(raw), np.int64)
    assert all_open(ranges, blocks, size) == all(token // size in raw for token in tokens)
    assert set(blocks_of(ranges, size).tolist()) == {token // size for token in tokens}


PROSE = (
    'Mr. Hale came in at 5.30 p.m. and sat down. "Is it late?" he asked. Nobody spoke!\n\n'
    "The J. Smith of old was gone. It rained (hard.) The end"
)


def test_what_was_written_stands_between_sentences(bundle: Bundle) -> None:
    """Statements of ``plain`` come where a sentence or a paragraph ends, never inside of one."""
    tokenizer = bundle.tokenizer
    prose = Filler([tokenizer.encode(PROSE)], tokenizer)
    ids = tokenizer.encode(PROSE)
    found = [tokenizer.decode(ids[:at]) for at in prose.sentence_borders(ids).tolist()]
    behind = ["sat down.", "he asked.", "spoke!", "gone.", "(hard.)", "The end"]
    assert found[0] == ""
    assert [text.rstrip("\n").endswith(end) for text, end in zip(found[1:], behind, strict=True)] == [True] * 6
    assert set(prose.sentence_borders(ids)) <= set(prose.borders(ids))


@pytest.mark.parametrize("seed", range(3))
def test_plain_statements_are_planted_once_each(bundle: Bundle, seed: int) -> None:
    """As many questions as were asked for, all different, each with its own statement at the end of a sentence."""
    tokenizer = bundle.tokenizer
    text = Filler([tokenizer.encode(PROSE + ".\n\n")] * 3, tokenizer)
    plan = PlantPlan(40_000, ("needle", "plain"), trials=40)
    (history,) = plant(np.random.default_rng(seed), tokenizer, text, plan)
    asked = [question for question in history.questions if question.suite == "plain"]
    assert len({question.asked.question for question in asked}) == len(asked) == 40
    for question in asked:
        start, end = history.spans[question.gold[0]]
        assert tokenizer.decode(history.ids[start:end]) == f" {question.asked.answer}"
        before = tokenizer.decode(history.ids[:start]).rstrip('\n"')
        assert not before or before[-1] in ".!?)"
        assert question.asked.score(question.asked.answer) == 1.0

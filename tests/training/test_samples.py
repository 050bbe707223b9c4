"""Training samples: facts before questions, weights on values, shares of tasks, falling back where nothing fits."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from mc_core.lab.data.train_tokenizer import train_tokenizer
from mc_core.lab.tasks.facts import KINDS, PERSONAL, held_out_key, make_fact
from mc_core.lab.training.base.batches import TASKS, Stage, make_batch, stage_of, thinned
from mc_core.lab.training.base.curriculum import CURRICULUM
from mc_core.lab.training.haystack import VALUE_WEIGHT
from mc_core.lab.training.sample import BLOCK, Difficulty, Layout
from mc_core.lab.training.sample_maker import SampleMaker
from training_lab import STAGES

LAYOUT = Layout(640, 320)


@pytest.fixture(scope="module")
def maker(corpus):
    return SampleMaker(corpus.train, corpus.encoder)


def decoded(maker, ids):
    return maker.encoder.tokenizer.decode(list(ids), skip_special_tokens=False)


def check_answer(maker, sample, fact, mark):
    """The marked tokens are the value, weighted; the statement stands before the question."""
    at = np.flatnonzero(sample.marks == mark)
    assert (np.diff(at) == 1).all()
    assert (sample.weights[at] == VALUE_WEIGHT).all()
    assert decoded(maker, sample.ids[at]).strip() == fact.value
    before = decoded(maker, sample.ids[: at[0]])
    question = before.rindex(f"<|im_start|>user\n{fact.question}<|im_end|>")
    assert fact.stated in before[:question] or fact.value in before[:question]
    assert fact.value in before[:question], "the value was never told"


def test_a_value_is_told_before_it_is_asked_for(maker):
    """Every recall sample can be answered: the value stands before its question, at full length of the layout."""
    rng = np.random.default_rng(0)
    for _ in range(60):
        made = maker.recall(rng, LAYOUT, Difficulty((1, 5)))
        assert made is not None
        sample, asked = made
        assert len(sample) == LAYOUT.length
        for mark, fact in enumerate(asked, 1):
            check_answer(maker, sample, fact, mark)
        assert set(np.unique(sample.marks)) == {*range(len(asked) + 1)}
        assert (sample.weights[sample.marks == 0] < VALUE_WEIGHT).all()


def test_questions_stand_in_the_tail(maker):
    """Under the block mask history sees next to nothing: questions and answers are all in the tail."""
    rng = np.random.default_rng(1)
    for _ in range(40):
        sample, _ = maker.recall(rng, LAYOUT, Difficulty((1, 5)))
        assert not sample.marks[: LAYOUT.tail_start].any()


def test_a_gap_is_not_trained_on(maker):
    """A token that follows a gap has no weight, and prompts with gaps do occur."""
    rng = np.random.default_rng(2)
    gaps = 0
    for _ in range(40):
        sample, _ = maker.recall(rng, LAYOUT, Difficulty((1, 2)))
        jumped = np.flatnonzero(sample.weights == 0)
        assert (jumped % BLOCK == 0).all()
        gaps += len(jumped) > 0
    assert gaps > 5


def test_drill_is_facts_and_questions_alone(maker):
    """Each value of a drill stands before its question, and nothing but statements and turns is there."""
    rng = np.random.default_rng(3)
    for _ in range(20):
        sample = maker.drill(rng, 600, Difficulty((1, 3), (3, 5)))
        assert len(sample) == 600
        last = int(sample.marks.max())
        assert last >= 2
        for mark in range(1, last):
            at = np.flatnonzero(sample.marks == mark)
            value = decoded(maker, sample.ids[at]).strip()
            question = np.flatnonzero(sample.ids[: at[0]] == maker.encoder.turn_start)[-2]
            assert value in decoded(maker, sample.ids[:question])
            assert (sample.weights[at] == VALUE_WEIGHT).all()


def test_thinning_keeps_answers_and_the_weight_of_the_rest(maker):
    """All answers count as before; fewer plain tokens do, and weigh as much together."""
    batch = make_batch(maker, replace(STAGES[1], recall=0.5), 20_000, 0.5, 0, 1)
    thin = thinned(batch, np.random.default_rng(0), 0.25)
    answers = batch.weights > 1
    assert answers.any()
    assert (thin.weights[answers] == batch.weights[answers]).all()
    kept, plain = (thin.weights[~answers] > 0).float(), batch.weights[~answers]
    assert kept[plain > 0].mean() == pytest.approx(0.25, abs=0.03)
    assert thin.weights[~answers].sum() == pytest.approx(float(plain.sum()), rel=0.1)


def test_copies_repeat_what_was_asked(maker):
    """The marked answer of a copy sample is, token for token, the end of the request before it."""
    rng = np.random.default_rng(4)
    for _ in range(20):
        sample = maker.copy(rng, LAYOUT)
        assert sample is not None
        assert len(sample) == LAYOUT.length
        span = sample.ids[sample.marks == 1]
        head = np.flatnonzero(sample.marks == 1)[0] - len(maker.encoder.opening("assistant"))
        request_end = head - len(maker.encoder.closing())
        assert sample.ids[request_end - len(span) : request_end].tolist() == span.tolist()


def test_evaluation_asks_for_keys_that_training_never_uses():
    """Keys are split by their hash; no held-out fact shares its key with a training fact."""
    rng = np.random.default_rng(5)
    for kind in (*KINDS, *PERSONAL):
        for held_out in (False, True):
            fact = make_fact(rng, kind, (3, 7), held_out)
            assert fact.value in fact.answer
            assert fact.value in fact.stated
    keys = {key: held_out_key(key) for key in (KINDS[0].key(rng) for _ in range(500))}
    assert 5 < sum(keys.values()) < 80
    for held_out in (False, True):
        for _ in range(50):
            fact = make_fact(rng, KINDS[0], (3, 7), held_out)
            stated = [key for key in keys if f" {key} " in fact.question]
            assert all(keys[key] == held_out for key in stated)


def test_a_batch_has_the_shares_of_its_stage(maker):
    """Tasks and masks come as often as the stage says."""
    stage = Stage(1.0, 320, (128, 160), 0.4, 0.1, (1, 2), (3, 5), block_mask=0.5, drill=0.2, sequences=2)
    counts, masked = Counter(), 0
    for step in range(250):
        batch = make_batch(maker, stage, 512, 0.5, 0, step)
        counts.update(TASKS[i] for i in batch.tasks.tolist())
        masked += batch.block_mask
    shares = {task: count / 500 for task, count in counts.items()}
    for task, expected in (("recall", 0.4), ("copy", 0.1), ("drill", 0.2), ("text", 0.3)):
        assert shares[task] == pytest.approx(expected, abs=0.08)
    assert masked / 250 == pytest.approx(0.5, abs=0.12)


def test_stages_take_their_shares_of_a_run():
    """Each stage has its share of the steps, in order."""
    counts = Counter(CURRICULUM.index(stage_of(CURRICULUM, step, 1000)) for step in range(1000))
    for number, stage in enumerate(CURRICULUM):
        assert counts[number] == pytest.approx(1000 * stage.share, abs=1.5)


def test_history_weighs_less_under_the_block_mask(maker):
    """``history_weight`` scales what stands before the tail, under the block mask alone."""
    for masked in (0.0, 1.0):
        stage = replace(STAGES[1], block_mask=masked, recall=0.0, copy=0.0)
        full, half = (make_batch(maker, stage, 512, weight, 0, 3) for weight in (1.0, 0.5))
        ratio = 0.5 if masked else 1.0
        start = full.tail_start - 1
        assert (half.weights[:, :start] == ratio * full.weights[:, :start]).all()
        assert (half.weights[:, start:] == full.weights[:, start:]).all()


def test_what_does_not_fit_becomes_text(corpus, tmp_path):
    """A run never dies of a sample: with bytes for tokens and hardly any tail, all steps still give full batches."""
    tokenizer = train_tokenizer(corpus.data, tmp_path, vocab_size=272)
    encoder = type(corpus.encoder)(tokenizer)
    tight = Stage(1.0, 128, (64, 64), 0.5, 0.3, (1, 4), (3, 7), wide_segments=0.5, drill=0.2)
    roomy = replace(tight, length=420, tail=(64, 191))
    maker = SampleMaker(corpus.train, encoder)
    seen = Counter()
    for stage in (tight, roomy):
        for step in range(120):
            batch = make_batch(maker, stage, 512, 0.5, 1, step)
            assert batch.ids.shape == batch.targets.shape == batch.weights.shape
            assert stage.length - BLOCK < batch.ids.shape[1] <= stage.length
            assert batch.tail_start < batch.ids.shape[1]
            assert (batch.tail_start - BLOCK) % batch.segment == 0
            seen.update((stage.length, TASKS[i]) for i in batch.tasks.tolist())
    assert seen[128, "text"] > 100
    assert seen[420, "recall"] > 20

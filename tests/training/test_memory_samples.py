"""Episodes as documents and samples: where statements stand, what is asked after them, what gaps may hide."""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from mc_core.errors import ConfigError
from mc_core.lab.data.cache import held_out_streams
from mc_core.lab.data.chat_format import ChatEncoder
from mc_core.lab.tasks.make import TASKS as MEMORY_TASKS
from mc_core.lab.tasks.make import make_episode
from mc_core.lab.training import memory_samples
from mc_core.lab.training.base.batches import TASKS, Stage, check_stages, make_batch
from mc_core.lab.training.base.trainer import train_base
from mc_core.lab.training.haystack import VALUE_WEIGHT
from mc_core.lab.training.memory_samples import (
    MAX_TURNS,
    episode_document,
    episode_sample,
    memory_drill,
    memory_sample,
)
from mc_core.lab.training.sample import Layout
from mc_core.lab.training.sample_maker import SampleMaker
from training_lab import STAGES

BUNDLED = Path(__file__).parents[2] / "models" / "megacontext-tiny" / "tokenizer.json"
LAYOUT = Layout(1056, 32 * 27)


@pytest.fixture(scope="module")
def makers(corpus):
    """Training and held-out samples under the bundled tokenizer."""
    tokenizer = Tokenizer.from_file(str(BUNDLED))
    streams = held_out_streams(corpus.data, tokenizer)
    return {kept: SampleMaker(streams, ChatEncoder(tokenizer), held_out=kept) for kept in (False, True)}


@pytest.fixture(scope="module")
def maker(makers):
    return makers[False]


def decoded(maker, ids):
    return maker.encoder.tokenizer.decode(list(ids), skip_special_tokens=False)


def answered(sample):
    """For each answer of a sample: the ranges of its marked tokens, by mark."""
    return {int(mark): np.flatnonzero(sample.marks == mark) for mark in np.unique(sample.marks) if mark}


@pytest.mark.parametrize("task", MEMORY_TASKS)
@pytest.mark.parametrize("chat", [False, True])
def test_places_hold_their_statements_in_order(maker, task, chat):
    """A document has the length asked for; each place decodes to its statement, and statements keep their order."""
    rng = np.random.default_rng(1)
    for distractors in (0, 3):
        episode = make_episode(rng, task, distractors=distractors)
        document = episode_document(rng, maker, episode, 1500, chat)
        assert document.ids.shape == (1500,)
        assert document.ids.dtype == np.int64
        ends = [0, *(end for _, end in document.places)]
        for (start, end), statement, before in zip(document.places, episode.statements, ends, strict=False):
            assert start >= before
            assert decoded(maker, document.ids[start:end]).strip() == statement
        for asked, gold in zip(episode.asked, document.gold, strict=True):
            assert gold == tuple(document.places[i] for i in asked.gold)


@pytest.mark.parametrize("task", MEMORY_TASKS)
def test_turns_ask_and_answer(maker, task):
    """A turn is the question in the chat format; the answer's marked tokens hold the values and weigh most."""
    rng = np.random.default_rng(2)
    episode = make_episode(rng, task)
    document = episode_document(rng, maker, episode, 2000)
    for mark, (asked, (prompt, answer)) in enumerate(zip(episode.asked, document.turns, strict=True), 1):
        said = decoded(maker, prompt)
        assert said == f"<|im_start|>user\n{asked.question}<|im_end|>\n<|im_start|>assistant\n"
        assert decoded(maker, answer.ids) == f"{asked.answer}<|im_end|>\n"
        inside = decoded(maker, answer.ids[answer.marks == mark])
        assert all(value in inside for value in asked.values)
        assert (answer.weights[answer.marks == mark] == VALUE_WEIGHT).all()
        assert (answer.weights[answer.marks == 0] < VALUE_WEIGHT).all()


def test_a_document_is_never_too_small_for_its_episode(maker):
    """A length that statements don't fit into is refused by name; just their length gives nothing but statements."""
    rng = np.random.default_rng(3)
    episode = make_episode(rng, "multikey")
    with pytest.raises(ConfigError, match=r"^tokens must be at least \d+"):
        episode_document(rng, maker, episode, 50)
    needed = sum(len(maker.encoder.text(f" {said}")) for said in episode.statements)
    with_newlines = sum(len(maker.encoder.text(f"\n{said}")) for said in episode.statements)
    full = episode_document(rng, maker, episode, max(needed, with_newlines))
    assert [decoded(maker, full.ids[a:b]).strip() for a, b in full.places] == list(episode.statements)


@pytest.mark.parametrize("task", MEMORY_TASKS)
@pytest.mark.parametrize("held_out", [False, True])
def test_every_question_of_a_sample_can_be_answered(makers, task, held_out):
    """All gold statements stand whole before the questions, gaps or not; questions and answers are in the tail."""
    maker, rng = makers[held_out], np.random.default_rng([4, held_out])
    turns = gaps = 0
    for n in range(25):
        episode = make_episode(rng, task, held_out, distractors=n % 5)
        sample = episode_sample(rng, maker, LAYOUT, episode)
        assert sample is not None
        assert len(sample) == LAYOUT.length
        assert not sample.marks[: LAYOUT.tail_start].any()
        text = decoded(maker, sample.ids)
        marked = answered(sample)
        assert 1 <= len(marked) <= MAX_TURNS
        at = text.index(f"<|im_start|>user\n{episode_first(episode, text)}")
        for asked in episode.asked:
            whole = f"<|im_start|>user\n{asked.question}<|im_end|>\n<|im_start|>assistant\n{asked.answer}<|im_end|>"
            if whole in text:
                turns += 1
                assert all(episode.statements[i] in text[:at] for i in asked.gold)
        gaps += bool((sample.weights == 0).any())
    assert turns >= 25
    assert gaps > 2 or task in ("chain", "multivalue")


def test_the_newest_text_often_states_something_else(maker):
    """In a fifth of the samples at least, a statement that no question needs stands right before the questions."""
    rng, found = np.random.default_rng(11), 0
    for _ in range(60):
        episode = make_episode(rng, "tracking", distractors=4)
        sample = episode_sample(rng, maker, LAYOUT, episode)
        text, tail = decoded(maker, sample.ids), decoded(maker, sample.ids[LAYOUT.tail_start :])
        before = tail[: len(tail) - len(text[text.index(f"<|im_start|>user\n{episode_first(episode, text)}") :])]
        found += any(episode.statements[i] in before for i in episode.distractors)
    assert found >= 12


@pytest.mark.parametrize("task", ["combine", "multikey", "multivalue", "needle"])
def test_the_newest_text_often_holds_a_wrong_value_in_the_right_words(maker, task, monkeypatch):
    """In a third of the samples at least, a number of another key or person, said in the very words of the one asked
    for, stands in the tail before the questions."""
    drawn, found, rng = [], 0, np.random.default_rng(12)
    monkeypatch.setattr(memory_samples, "make_episode", lambda *a: drawn.append(make_episode(*a)) or drawn[-1])
    for _ in range(60):
        drawn.clear()
        sample = memory_sample(rng, maker, LAYOUT, (task,), 4)
        episode = drawn[0]
        text, tail = decoded(maker, sample.ids), decoded(maker, sample.ids[LAYOUT.tail_start :])
        before = tail[: len(tail) - len(text[text.index(f"<|im_start|>user\n{episode_first(episode, text)}") :])]
        gold = {said_form(episode.statements[i]) for asked in episode.asked for i in asked.gold}
        late = [episode.statements[i] for i in episode.distractors if episode.statements[i] in before]
        found += any(said_form(said) in gold for said in late if re.search(r"\d", said))
    assert found >= 20


@pytest.mark.parametrize("task", ["combine", "multikey", "multivalue"])
def test_what_is_stated_late_answers_no_question(task):
    """A distractor shares neither its whole key nor its trait with what an episode asks for, so it may come last."""
    rng = np.random.default_rng(13)
    for _ in range(60):
        episode = make_episode(rng, task, distractors=6)
        own = [said for i, said in enumerate(episode.statements) if i not in episode.distractors]
        for said in (episode.statements[i] for i in episode.distractors):
            names = {found for one in own for found in KEYED.findall(one)}
            assert names
            assert not names & set(KEYED.findall(said))
            assert not any(end(said) == end(one) for one in own)


KEYED = re.compile(r"[a-z]+-[a-z]+|[A-Z][a-z]+ [A-Z][a-z]+")
"""Keys such as "vague-lantern" and full names."""


def end(said):
    """What a statement says of its key or person: a trait, or a number."""
    return KEYED.split(said)[-1]


def said_form(said):
    """A statement without its key or person and its number."""
    return re.sub(r"\d+", "#", KEYED.sub("@", said))


def episode_first(episode, text):
    """The question that comes first in the text."""
    asked = [asked.question for asked in episode.asked if f"<|im_start|>user\n{asked.question}" in text]
    return min(asked, key=lambda question: text.index(f"<|im_start|>user\n{question}"))


def test_the_last_value_stays_the_last(maker):
    """Updates that a sample shows keep their order: the one that counts is never followed by an older one."""
    rng = np.random.default_rng(5)
    for _ in range(40):
        episode = make_episode(rng, "tracking")
        text = decoded(maker, episode_sample(rng, maker, LAYOUT, episode).ids)
        shown = [text.index(said) for said in episode.statements if said in text]
        assert shown == sorted(shown)
        assert episode.statements[-1] in text


def test_samples_are_their_seed(maker):
    """The same seed gives the same sample."""
    for seed in range(5):
        one, two = (memory_sample(np.random.default_rng(seed), maker, LAYOUT, MEMORY_TASKS, 6) for _ in range(2))
        assert (one.ids == two.ids).all()
        assert (one.weights == two.weights).all()


def test_short_layouts_leave_out_what_no_question_needs(maker):
    """Where eight needles do not fit, the one that is asked for is there all the same; too small a tail gives none."""
    rng = np.random.default_rng(6)
    for _ in range(20):
        episode = make_episode(rng, "multikey")
        sample = episode_sample(rng, maker, Layout(190, 96), episode)
        assert len(sample) == 190
        text = decoded(maker, sample.ids)
        for asked in episode.asked:
            if asked.question in text:
                assert episode.statements[asked.gold[0]] in text
        assert sum(said in text for said in episode.statements) < len(episode.statements)
        assert episode_sample(rng, maker, Layout(104, 96), episode) is None


def test_a_stage_has_its_share_of_episodes(maker):
    """Memory sequences come as often as the stage says, of its tasks alone, and nothing else changes without them."""
    stage = Stage(1.0, 512, (128, 191), 0.2, 0.0, (1, 4), memory=0.5, tasks=("passkey",), sequences=2)
    counts, others = Counter(), 0
    for step in range(100):
        batch = make_batch(maker, stage, 1024, 0.5, 0, step)
        counts.update(TASKS[i] for i in batch.tasks.tolist())
        for ids, task in zip(batch.ids, batch.tasks.tolist(), strict=True):
            others += TASKS[task] == "memory" and "pass key" not in decoded(maker, ids)
    assert counts["memory"] / 200 == pytest.approx(0.5, abs=0.1)
    assert counts["recall"] / 200 == pytest.approx(0.2, abs=0.09)
    assert others == 0


def test_bad_stages_are_refused(corpus):
    """Shares above 1, unknown tasks, and stages too short for their episodes are ConfigErrors."""
    with pytest.raises(ConfigError, match=r"recall \+ copy \+ drill \+ memory"):
        replace(STAGES[0], memory=0.5)
    for tasks in ((), ("sums",)):
        with pytest.raises(ConfigError, match="stage tasks must be some of"):
            replace(STAGES[0], tasks=tasks)
    small = SampleMaker(corpus.train, corpus.encoder)
    short = Stage(1.0, 128, (64, 64), 0.0, 0.0, (1, 2), memory=0.5, tasks=("uuid",))
    with pytest.raises(ConfigError, match="too short for questions of memory"):
        check_stages(small, (short,), 0)


def test_a_run_with_episodes_resumes(corpus, tmp_path):
    """Batches of episodes are a function of the step, so a run that goes on ends where one at a stretch does."""
    stages = (Stage(1.0, 512, (160, 191), 0.2, 0.0, (1, 2), memory=0.6, tasks=("needle", "paraphrase", "absent")),)
    settings = {"stages": stages, "batch_tokens": 512, "log_steps": 1}
    whole = train_base(corpus.config(tmp_path / "a", total_tokens=512 * 4, **settings), lambda progress: None)
    stopper = _Stop(2)
    config = corpus.config(tmp_path / "b", total_tokens=512 * 4, **settings)
    assert train_base(config, lambda progress: None, stopper).step == 2
    again = train_base(config, lambda progress: None)
    for a, b in zip(whole.decoder.parameters(), again.decoder.parameters(), strict=True):
        assert a.equal(b)
    assert '"memory"' in (tmp_path / "a" / "log.jsonl").read_text()


class _Stop:
    """Is set once it was asked so often."""

    def __init__(self, after):
        self.left = after

    def is_set(self):
        self.left -= 1
        return self.left < 0


def test_a_drill_of_episodes_tells_each_value_before_it_is_asked_for(maker):
    """A memory drill is statements and turns alone, of the length asked for, each marked value stated before."""
    rng = np.random.default_rng(5)
    for task in ("uuid", "multivalue", "tracking"):
        sample = memory_drill(rng, maker, 700, (task,), 2)
        assert len(sample) == 700
        ranks = answered(sample)
        assert len(ranks) >= 2
        for mark in list(ranks)[:-1]:
            first = decoded(maker, sample.ids[ranks[mark][:4]]).strip()
            question = np.flatnonzero(sample.ids[: ranks[mark][0]] == maker.encoder.turn_start)[-2]
            assert first in decoded(maker, sample.ids[:question])
            assert (sample.weights[ranks[mark]] == VALUE_WEIGHT).all()


@pytest.mark.parametrize("chat", [False, True])
def test_room_is_the_most_that_statements_take(maker, chat):
    """Whatever is drawn, statements take no more tokens than room says, and some draws take as many."""
    rng = np.random.default_rng(6)
    for task in MEMORY_TASKS:
        statements = make_episode(rng, task).statements
        room = maker.room(statements, chat)
        taken = [sum(len(maker.statement(rng, text, chat)[0]) for text in statements) for _ in range(20)]
        assert max(taken) <= room
        assert max(sum(len(maker.statement(rng, t, chat)[0]) for t in statements[:1]) for _ in range(60)) == maker.room(
            statements[:1], chat
        )

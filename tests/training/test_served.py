"""Training in the contexts that serving makes: the same ones, with the gold open, of what training may ask."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import torch

from mc_core.bundle.bundle import Bundle, load_bundle
from mc_core.engine.refocus_job import refocus
from mc_core.engine.requests import ContextReport
from mc_core.errors import ConfigError
from mc_core.focus.focus_config import FocusConfig
from mc_core.lab.controller import MCController, drive
from mc_core.lab.tasks.history import History, Question, blocks_of
from mc_core.lab.training.focus.export import blend
from mc_core.lab.training.focus.focus_training import FocusStage, FocusTrainConfig
from mc_core.lab.training.focus.served import Seen, ServedQuestions
from mc_core.lab.training.focus.trainer import FocusTrainer, train_focus
from mc_core.lab.training.sample_maker import SampleMaker
from support import add_lensnet
from training_lab import TINY, Corpus

BUDGET, RECENT, TOKENS = 576, 64, 6000
ASKED = {"needle": 3, "absent": 4, "tracking": 6}
STAGE = FocusStage(1.0, (2048, 2400), (448, 512), views=3, served=1.0, asked={"needle": 4})


class Watched(ServedQuestions):
    """Remembers the history and every question, used or not."""

    def _ask(self, session, history, question, turns) -> Seen | None:  # type: ignore[no-untyped-def]
        found = super()._ask(session, history, question, turns)
        self.history: History = history
        self.all: list[tuple[Question, Seen | None]] = [*getattr(self, "all", []), (question, found)]
        return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """The tiny base with a LensNet of random weights, so that words alone find what is asked for."""
    target = tmp_path_factory.mktemp("served") / "tiny"
    target.mkdir()
    for file in model.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    add_lensnet(target, TINY.hidden_size)
    return target


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    return load_bundle(folder)


@pytest.fixture(scope="module")
def asked(bundle: Bundle, corpus: Corpus) -> Watched:
    questions = Watched(bundle, SampleMaker(corpus.train, corpus.encoder), RECENT, 32)
    questions.draw(np.random.default_rng(0), TOKENS, BUDGET, ASKED, sum(ASKED.values()))
    return questions


def settings(corpus: Corpus, model: Path, out: Path, **others: object) -> FocusTrainConfig:
    chosen = {
        "mode": "joint",
        "stages": (STAGE,),
        "base_share": 0.0,
        "train_embeddings": False,
        "steps": 2,
        "recent_tokens": RECENT,
        **others,
    }
    return FocusTrainConfig(data=corpus.data, model=model, out=out, **chosen)  # type: ignore[arg-type]


def test_a_context_is_the_one_that_the_engine_makes(asked: Watched, bundle: Bundle) -> None:
    """The engine's first refocus, hops and all, shows the same entries, but where gold had to be opened."""
    focus = FocusConfig(budget=BUDGET, recent_tokens=RECENT, lens="hybrid")
    seen = [found for _, found in asked.all if found is not None and not found.mended]
    assert len(seen) > 4
    for one in seen:
        controller = MCController(bundle, focus)
        session = controller._factory.create("served", "local", model="local")
        session.kv = controller.core.runner.acquire()
        session.append(asked.history.ids)
        prompt = one.passage.ids[len(asked.history) : one.passage.history].astype(np.int32)
        session.append(prompt)
        with torch.inference_mode():
            drive(refocus(controller.core, session, prompt, ContextReport(), "", "turn"), controller.core.runner)
        assert np.array_equal(session.wc.levels, one.context.levels)
        assert np.array_equal(session.wc.indices, one.context.indices)


def test_the_answer_is_right_and_what_it_needs_stands_open(asked: Watched, corpus: Corpus) -> None:
    """A passage is history, question and answer, and its gold is raw, also where the lens had left it closed."""
    mended = 0
    for question, found in asked.all:
        assert found is not None
        mended += found.mended
        passage = found.passage
        text = corpus.tokenizer.decode(passage.ids[passage.history :].tolist())
        assert all(value in text for value in question.asked.values)
        assert question.asked.question in corpus.tokenizer.decode(
            passage.ids[len(asked.history) : passage.history].tolist()
        )
        assert np.array_equal(passage.ids[: len(asked.history)], asked.history.ids)
        assert not passage.weights[: len(asked.history)].any()
        raw = found.context.indices[found.context.levels == 0]
        gold = [asked.history.spans[i] for i in question.gold]
        assert np.isin(blocks_of(gold, 32), raw).all()
        assert found.context.cost <= BUDGET
    assert len(asked.all) == sum(ASKED.values())
    assert mended


def test_questions_that_follow_find_their_gold_in_the_same_context(bundle: Bundle, corpus: Corpus) -> None:
    """Others of the episode, at most turns - 1, each once, with its answer after it and all that it needs raw."""
    questions = Watched(bundle, SampleMaker(corpus.train, corpus.encoder), RECENT, 32)
    questions.draw(np.random.default_rng(1), TOKENS, BUDGET, ASKED, sum(ASKED.values()), turns=3)
    followed = 0
    for question, found in questions.all:
        assert found is not None
        followed += len(found.then)
        assert len(found.then) <= 2
        assert len({id(one) for one in (question, *found.then)}) == 1 + len(found.then)
        passage, at = found.passage, 0
        text = corpus.tokenizer.decode(passage.ids[len(questions.history) :].tolist())
        for one in (question, *found.then):
            assert one.episode == question.episode
            at = text.index(one.asked.answer, text.index(one.asked.question, at))
            gold = [questions.history.spans[i] for i in one.gold]
            assert np.isin(blocks_of(gold, 32), found.context.indices[found.context.levels == 0]).all()
        assert (passage.weights[passage.history :] > 0).all()
        assert found.context.cost <= BUDGET
    tracked = [found for question, found in questions.all if question.task == "tracking" and found is not None]
    assert all(len(found.then) == 1 for found in tracked)
    assert followed >= len(tracked) > 0


def test_only_the_base_learns_and_its_embeddings_stay(corpus: Corpus, folder: Path, tmp_path: Path) -> None:
    """Where gists are hidden, GistNet and embeddings stay to the bit, as the lens reads them; layers learn."""
    config = settings(corpus, folder, tmp_path / "run")
    before = FocusTrainer(config, SampleMaker(corpus.train, corpus.encoder)).model.state_dict()
    trained = train_focus(config, lambda _: None, Event())
    assert trained.finished
    after = trained.model.state_dict()
    same = {name for name, tensor in before.items() if torch.equal(tensor, after[name])}
    stays = ("gistnet.", "decoder.embed_tokens", "decoder.lm_head")
    assert same == {name for name in after if name.startswith(stays)}


def test_a_blend_lies_between_the_bases(corpus: Corpus, folder: Path, tmp_path: Path) -> None:
    """What is written lies at its share between the base that the run began with and the one that it ended with."""
    config = settings(corpus, folder, tmp_path / "run", blend=0.25)
    model = train_focus(config, lambda _: None, Event()).model
    before = load_bundle(folder).decoder.state_dict()
    after = {name: tensor.clone() for name, tensor in model.decoder.state_dict().items()}
    blend(config, model)
    for name, tensor in model.decoder.state_dict().items():
        assert torch.allclose(tensor, 0.75 * before[name] + 0.25 * after[name], atol=1e-6)
    with pytest.raises(ConfigError, match="blend"):
        settings(corpus, folder, tmp_path, blend=0.0)


def test_a_batch_depends_on_its_number_alone(corpus: Corpus, folder: Path, tmp_path: Path) -> None:
    """Whichever process makes it, and whatever was made before."""
    config, samples = settings(corpus, folder, tmp_path / "run"), SampleMaker(corpus.train, corpus.encoder)
    first, second = (FocusTrainer(config, samples).batches for _ in range(2))
    second.batch(0)
    one, other = first.batch(1).seen, second.batch(1).seen  # type: ignore[union-attr]
    assert len(one) == 3
    assert torch.equal(one.ids, other.ids)
    assert torch.equal(one.weights, other.weights)


@pytest.mark.parametrize(
    ("field", "make"),
    [
        ("history", lambda: dataclasses.replace(STAGE, history=(1000, 2400))),
        ("asked", lambda: dataclasses.replace(STAGE, asked={"riddles": 2})),
        ("asked", lambda: dataclasses.replace(STAGE, asked={})),
        ("served", lambda: dataclasses.replace(STAGE, served=1.5)),
        ("turns", lambda: dataclasses.replace(STAGE, turns=0)),
    ],
)
def test_stages_that_cannot_be(field: str, make) -> None:  # type: ignore[no-untyped-def]
    """Each impossible value is refused by its name."""
    with pytest.raises(ConfigError, match=field):
        make()


def test_runs_that_would_learn_nothing_or_spoil_the_lens(
    corpus: Corpus, model: Path, folder: Path, tmp_path: Path
) -> None:
    """Training embeddings that the lens reads, a frozen base without gists to learn, and a model without a lens."""
    samples = SampleMaker(corpus.train, corpus.encoder)
    with pytest.raises(ConfigError, match="train_embeddings"):
        settings(corpus, folder, tmp_path, train_embeddings=True)
    with pytest.raises(ConfigError, match="mode"):
        FocusTrainer(settings(corpus, folder, tmp_path, mode="frozen"), samples)
    with pytest.raises(ConfigError, match="lensnet"):
        FocusTrainer(settings(corpus, model, tmp_path), samples)

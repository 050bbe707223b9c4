"""Lens training: what a run learns from, that it learns, resumes, and ends in a bundle."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import torch

from mc_core.bundle.bundle import load_bundle
from mc_core.errors import ConfigError
from mc_core.lab.data.train_tokenizer import write_tokenizer
from mc_core.lab.tasks.concepts import CONCEPTS
from mc_core.lab.tasks.paraphrase import pairs
from mc_core.lab.training.base.model import initialise
from mc_core.lab.training.haystack import Haystack
from mc_core.lab.training.lens.batch import collate
from mc_core.lab.training.lens.draw import draw_samples
from mc_core.lab.training.lens.export import export_lens
from mc_core.lab.training.lens.history import kept_apart, make_history
from mc_core.lab.training.lens.lens_training import LensShape, LensTrainConfig
from mc_core.lab.training.lens.samples import concept_episode, random_blocks, task_sample
from mc_core.lab.training.lens.trainer import open_run, train_lens, validate
from mc_core.models.decoder import Decoder
from mc_core.models.loading import save_decoder
from training_lab import TINY, Corpus

STEPS = 4
NET = LensShape(width=32, heads=2, layers=1, keys=2, key_dim=16, key_width=24)


def ignore(progress: object) -> None:
    """No report."""


def key_in(question: str) -> str:
    """Such as "old-owl"."""
    found = re.search(r"[a-z]+-[a-z]+", question)
    assert found
    return found[0]


@pytest.fixture(scope="module")
def config(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> LensTrainConfig:
    """A run of seconds for a tiny base."""
    root = tmp_path_factory.mktemp("lens")
    model = root / "model"
    decoder = Decoder(TINY.config(corpus.tokenizer.get_vocab_size()))
    initialise(decoder, 0)
    model.mkdir()
    write_tokenizer(model, corpus.tokenizer, TINY.max_positions)
    save_decoder(model, decoder, torch.float32, {})
    small = {"pairs": 4, "bank": 64, "fresh": 16, "hard": 8, "concepts": 8, "validation_blocks": 96, "labels": 5}
    times = {"steps": STEPS, "log_steps": 1, "validation_steps": 3, "glances": 1, "histories": 1, "warmup_steps": 1}
    tasks = ("needle", "paraphrase", "tracking")
    return LensTrainConfig(data=corpus.data, model=model, out=root / "run", net=NET, tasks=tasks, **small, **times)  # type: ignore[arg-type]


def weights(config: LensTrainConfig) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in open_run(config, ignore).tensors().items()}


def test_a_resumed_run_is_the_same_run(config: LensTrainConfig, tmp_path: Path) -> None:
    """N steps give the same weights, optimizer and bank as N/2 steps, a stop, and N/2 more."""
    whole, split = replace(config, out=tmp_path / "whole"), replace(config, out=tmp_path / "split")
    train_lens(whole, ignore, Event())
    stop = Event()
    first = train_lens(split, lambda p: stop.set() if p.phase == "train" and p.done == STEPS // 2 else None, stop)
    assert (first.step, first.finished) == (STEPS // 2, False)
    assert train_lens(split, ignore, Event()).finished
    one, other = weights(whole), weights(split)
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
    with pytest.raises(ConfigError, match=r"^seed cannot change"):
        train_lens(replace(whole, seed=1), ignore, Event())


def test_a_step_moves_the_weights_and_a_bundle_keeps_them(config: LensTrainConfig, tmp_path: Path) -> None:
    """Key and query weights change in every step, and what a bundle loads is what was trained."""
    trainer = open_run(replace(config, out=tmp_path / "run"), ignore)
    before = {name: p.detach().clone() for name, p in trainer.net.named_parameters()}
    trainer.learn([trainer.batch(trainer.step)])
    for name, parameter in trainer.net.named_parameters():
        if name.startswith(("key_net", "query_net")):
            assert not torch.equal(parameter, before[name]), name
    export_lens(config, trainer.net, tmp_path / "bundle", {"steps": 1})
    loaded = load_bundle(tmp_path / "bundle")
    assert loaded.lensnet is not None
    assert not loaded.manifest.passed("lensnet")
    assert loaded.lens == "lexical"
    for name, parameter in trainer.net.named_parameters():
        assert torch.equal(parameter, dict(loaded.lensnet.named_parameters())[name]), name
    with pytest.raises(ConfigError, match="another folder"):
        export_lens(config, trainer.net, config.model, {})


def test_training_lowers_the_loss(config: LensTrainConfig, tmp_path: Path) -> None:
    """The loss falls by a tenth and more within some steps of samples that stay alike: it is no constant."""
    steps = 30
    few = {"tasks": ("needle", "paraphrase"), "labels": 0, "growth": 0.0}
    quick = replace(config, out=tmp_path / "run", steps=steps, rate=1e-2, **few)  # type: ignore[arg-type]
    trainer = open_run(quick, ignore)
    losses = []
    for _ in range(steps):
        trainer.learn([trainer.batch(trainer.step)])
        losses.append(trainer.take_figures()["loss"])
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])


def test_positives_hold_the_statement(corpus: Corpus) -> None:
    """What a row wants is where the gold statement's value stands, blocks of it alone count as right or left out."""
    maker, tokenizer = Haystack(corpus.train, corpus.encoder), corpus.tokenizer
    for seed in range(20):
        rng = np.random.default_rng(seed)
        sample = task_sample(rng, maker, "needle", 32, 3, 30)
        batch = collate([sample])
        for row, wanted in enumerate(sample.wanted):
            right = batch.blocks[batch.positive[row]]
            stated = tokenizer.decode(right.flatten().tolist(), skip_special_tokens=False)
            question = tokenizer.decode(sample.tails[wanted.query].tolist(), skip_special_tokens=False)
            key = key_in(question)
            assert key in stated
            assert not (batch.positive[row] & batch.negative[row]).any()
            outside = tokenizer.decode(batch.blocks[batch.negative[row]].flatten().tolist())
            assert f"for {key} is" not in outside


def test_other_samples_are_wrong_unless_they_might_answer(corpus: Corpus) -> None:
    """Blocks of other kinds of samples are negatives of every row; those of another episode of its task are not."""
    maker, rng = Haystack(corpus.train, corpus.encoder), np.random.default_rng(0)
    one, same, other = (task_sample(rng, maker, task, 32, 0, 30) for task in ("passkey", "passkey", "uuid"))
    batch = collate([one, same, other])
    first, second = len(one.blocks), len(one.blocks) + len(same.blocks)
    assert not batch.negative[0, first:second].any()
    assert batch.negative[0, second:].all()


def test_gold_of_a_history_is_where_it_was_put(corpus: Corpus) -> None:
    """Each question's gold blocks hold its statement's key, at any offset, and the text around is the text given."""
    maker, rng = Haystack(corpus.held_out, corpus.encoder, held_out=True), np.random.default_rng(1)
    text = random_blocks(rng, maker, 64, 32)
    history = make_history(rng, maker, text, ("needle", "paraphrase"))
    kept = {row.tobytes() for row in history.blocks}
    assert all(row.tobytes() in kept for row in text)
    assert {question.task for question in history.questions} == {"needle", "paraphrase"}
    for question in history.questions:
        if question.task == "needle":
            said = corpus.tokenizer.decode(history.blocks[list(question.gold[0])].flatten().tolist())
            asked = corpus.tokenizer.decode(question.tail.tolist())
            assert key_in(asked) in said


def test_validation_text_is_not_trained_on(corpus: Corpus) -> None:
    """The end of each stream is kept apart, whole documents of it, and nothing is lost."""
    rest, kept = kept_apart(corpus.train, kept=False), kept_apart(corpus.train, kept=True)
    for stream, one, other in zip(corpus.train, rest, kept, strict=True):
        assert np.array_equal(np.concatenate([one.ids, other.ids]), stream.ids)
        assert len(other) > 0
        assert other.offsets[0] == 0
        assert other.offsets[-1] == len(other)


def test_validation_measures_every_lens(config: LensTrainConfig, tmp_path: Path) -> None:
    """Recall is told for each lens and task, shares in [0, 1]; words alone find a key that is said but once."""
    trainer = open_run(replace(config, out=tmp_path / "run"), ignore)
    figures = validate(trainer, 1)
    assert set(figures) == {"lexical", "learned", "hybrid"}
    for by_task in figures.values():
        assert set(by_task) == set(config.tasks)
        assert all(0 <= row["whole"] <= row["found"] <= 1 for row in by_task.values())
    assert figures["lexical"]["needle"]["found"] == 1.0


def test_batches_are_a_function_of_seed_and_step(config: LensTrainConfig, corpus: Corpus) -> None:
    """The same generator gives the same samples, another gives others."""
    maker = Haystack(corpus.train, corpus.encoder)
    one, same, other = (collate(draw_samples(np.random.default_rng([s, 3]), maker, config, 3)) for s in (0, 0, 1))
    assert torch.equal(one.blocks, same.blocks)
    assert torch.equal(one.tails, same.tails)
    assert one.blocks.shape != other.blocks.shape or not torch.equal(one.blocks, other.blocks)


def test_paraphrases_are_asked_for_in_all_wordings_but_those_kept_for_evaluation() -> None:
    """A statement is looked for in every question that it is trained with and in its other wordings, never in a
    question that this pair keeps for evaluation."""
    told = {statement_pattern(text): (concept, text) for concept in CONCEPTS for text in concept.stated}
    episode = concept_episode(np.random.default_rng(5), 40)
    for i, statement in enumerate(episode.statements):
        concept, stated = next(found for pattern, found in told.items() if pattern.fullmatch(statement))
        asked = [one.question for one in episode.asked if one.gold == (i,)]
        questions = {question for said, question in pairs(concept, False) if said == stated}
        assert {question for question in asked if question in concept.asked} == questions
        others = [text for text in concept.stated if text != stated]
        for other in others:
            assert any(statement_pattern(other).fullmatch(question) for question in asked)
        assert len(asked) == len(questions) + len(others)


def statement_pattern(template: str) -> re.Pattern[str]:
    """The template with any value."""
    before, _, after = template.partition("{v}")
    start = f"{re.escape(before[:-3])} an? " if before.endswith(" a ") else re.escape(before)
    return re.compile(f"{start}.+{re.escape(after)}")

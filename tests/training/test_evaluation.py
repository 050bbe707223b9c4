"""Evaluation and export: what is asked, what is written, and the commands."""

import json
from threading import Event

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from mc_core.bundle.bundle import load_bundle
from mc_core.errors import ConfigError
from mc_core.lab.data.cache import held_out_streams
from mc_core.lab.training.base import evaluate
from mc_core.lab.training.base.card import Card, training_command, with_figures
from mc_core.lab.training.base.evaluate import KINDS, Serving, evaluate_base, make_question, recall_accuracy, text_loss
from mc_core.lab.training.base.export import export_run
from mc_core.lab.training.base.model import BaseModel, BaseShape, initialise
from mc_core.lab.training.base.trainer import train_base
from mc_core.lab.training.sample import BLOCK
from mc_core.lab.training.sample_maker import SampleMaker
from mc_core.models.decoder import Decoder
from server.cli import app
from training_lab import TINY

SERVINGS = (Serving(512), Serving(512, segment=32), Serving(512, block_mask=False))


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    """A run of two steps."""
    out = tmp_path_factory.mktemp("run")
    train_base(corpus.config(out, total_tokens=1024, log_steps=1), lambda progress: None, Event())
    return out


def test_held_out_streams_are_the_caches(corpus):
    """The held-out text that a bundle is measured on is what training left out, to the token."""
    found = held_out_streams(corpus.data, corpus.tokenizer)
    assert [(s.name, s.chat) for s in found] == [(s.name, s.chat) for s in corpus.held_out]
    for ours, cached in zip(found, corpus.held_out, strict=True):
        assert np.array_equal(ours.ids, cached.ids)
        assert np.array_equal(ours.offsets, cached.offsets)


def test_a_folder_too_small_to_hold_out_is_refused(corpus, tmp_path):
    """Figures on text that was trained on would be no figures."""
    rows = (f"Ba ce {i}." for i in range(1000))
    from mc_core.lab.data.corpus import Document

    kept = [text for text in rows if not Document((text,)).held_out][:20]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in kept))
    with pytest.raises(ConfigError, match="too small to hold out"):
        held_out_streams(tmp_path, corpus.tokenizer)


@pytest.mark.parametrize("serving", SERVINGS, ids=lambda s: s.name)
def test_a_question_can_be_answered_from_history(corpus, serving):
    """Prompts are full, end where the answer begins, tell the fact in the history, and do not hold the answer."""
    maker = SampleMaker(corpus.held_out, corpus.encoder, held_out=True)
    rng = np.random.default_rng(0)
    across = []
    for _ in range(15):
        question = make_question(rng, maker, serving, KINDS, (7, 7))
        assert len(question.prompt) == serving.context
        opening = corpus.encoder.opening("assistant")
        assert question.prompt[-len(opening) :].tolist() == opening
        decode = corpus.encoder.tokenizer.decode
        history = [decode(question.prompt[: serving.tail_start], skip_special_tokens=False)]
        tail = decode(question.prompt[serving.tail_start :], skip_special_tokens=False)
        assert question.fact.stated in history[0]
        assert question.fact.question in tail
        segments = question.prompt[BLOCK : serving.tail_start].reshape(-1, serving.segment)
        whole = [question.fact.stated in decode(s, skip_special_tokens=False) for s in segments]
        first = question.fact.stated in decode(question.prompt[:BLOCK], skip_special_tokens=False)
        assert question.across is not (any(whole) or first)
        across.append(question.across)
    assert any(across) or serving.segment > BLOCK


def test_recall_counts_answers_that_hold_the_value(corpus, monkeypatch):
    """A decoder that reads the fact off scores 1, one that says nothing scores 0, split by where the fact lies."""
    model = BaseModel(Decoder(TINY.config(corpus.tokenizer.get_vocab_size())))
    asked = []
    real = make_question

    def remembered(*arguments):
        asked.append(real(*arguments))
        return asked[-1]

    monkeypatch.setattr(evaluate, "make_question", remembered)
    served = []

    def reading(model, prompts, *layout):
        part = asked[len(served) : len(served) + len(prompts)]
        served.extend(part)
        return [corpus.encoder.text(q.fact.answer) if q.across else corpus.encoder.text("No.") for q in part]

    monkeypatch.setattr(evaluate, "greedy", reading)
    result = recall_accuracy(
        model, corpus.held_out, corpus.encoder, KINDS, (3, 4), 12, Serving(512, segment=64), batch=5
    )
    across = sum(q.across for q in asked)
    assert (result.samples, result.within, result.across) == (12, 12 - across, across)
    assert 0 < across < 12
    assert result.across_right == 1.0
    assert result.within_right == 0.0
    assert result.right == pytest.approx(across / 12, abs=1e-3)


def test_losses_of_a_blind_model_are_those_of_guessing(corpus):
    """With all logits equal the loss is log of the vocabulary, under every mask."""
    vocab = corpus.tokenizer.get_vocab_size()
    decoder = Decoder(TINY.config(vocab))
    initialise(decoder, 0)
    with torch.no_grad():
        decoder.embed_tokens.weight.zero_()
    for serving in SERVINGS:
        found = text_loss(BaseModel(decoder), corpus.held_out, serving, samples=3)
        assert found
        assert all(loss == pytest.approx(np.log(vocab), abs=1e-4) for loss in found.values())


def test_a_model_without_positions_for_a_context_is_refused(corpus):
    """Figures in a layout that the model cannot hold would mean nothing."""
    shape = BaseShape(hidden_size=32, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=16, max_positions=256)
    decoder = Decoder(shape.config(corpus.tokenizer.get_vocab_size()))
    with pytest.raises(ConfigError, match="552 positions, the model has 256"):
        evaluate_base(decoder, corpus.tokenizer, corpus.held_out)


def test_a_run_becomes_a_bundle(corpus, run, tmp_path):
    """The written folder loads, has the run's weights, says how it wants to be run, and can be read by others."""
    figures = export_run(run, tmp_path / "tiny", Card("tiny", "From **here**.", "cc0-1.0"))
    bundle = load_bundle(tmp_path / "tiny")
    assert (bundle.name, bundle.block_size, bundle.lens) == ("tiny", 32, "lexical")
    assert (bundle.positions, bundle.repair, bundle.hidden_gists) == ("compact", "block", True)
    config = json.loads((tmp_path / "tiny" / "config.json").read_text())
    assert config["torch_dtype"] == "float16"
    assert config["megacontext"]["block_mask"] is True
    assert (figures["steps"], figures["seed"]) == (2, 0)
    assert figures["training_losses"]["loss"] > 0
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "tiny").iterdir()} == {0o644}
    card = (tmp_path / "tiny" / "README.md").read_text()
    assert card.startswith("---\nlicense: cc0-1.0\n")
    assert "From **here**." in card
    assert "2 steps" in card
    assert f"{sum(p.numel() for p in bundle.decoder.parameters()) / 1e6:.1f} M" in card


def test_a_run_without_a_checkpoint_is_no_bundle(tmp_path):
    """The message says what is missing."""
    (tmp_path / "config.json").write_text('{"shape": {}}')
    with pytest.raises(ConfigError, match="holds no checkpoint"):
        export_run(tmp_path, tmp_path / "out", Card("x"))


def test_the_command_measures_and_writes(corpus, run, tmp_path):
    """``megacontext eval base`` prints JSON; with --write bundle.json and the card hold the same figures."""
    export_run(run, tmp_path / "tiny", Card("tiny"))
    arguments = ["eval", "base", "--bundle", str(tmp_path / "tiny"), "--data", str(corpus.data), "--samples", "2"]
    result = CliRunner().invoke(app, [*arguments, "--write"])
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert set(figures["recall"]["all_kinds"]) == {"block_256_512", "block_256_1024", "block_32_1024", "full_1024"}
    assert set(figures["text_loss"]) == {"block_32_1024", "block_256_1024", "full_1024"}
    base = json.loads((tmp_path / "tiny" / "bundle.json").read_text())["evaluation"]["base"]
    assert base["recall"] == figures["recall"]
    assert base["steps"] == 2
    card = (tmp_path / "tiny" / "README.md").read_text()
    assert "| all kinds | blocks of 32, 1024 tokens |" in card
    assert "| full, 1024 tokens |" in card
    assert with_figures(card, base) == card
    bad = CliRunner().invoke(app, [*arguments[:-1], "0"])
    assert bad.exit_code != 0
    assert "samples must be at least 1" in bad.output


def test_the_card_tells_the_command(corpus, tmp_path):
    """Settings that differ from the defaults are in the command, the others and this machine's paths are not."""
    config = corpus.config(tmp_path / "secret", total_tokens=7, mix={"a b.jsonl": 0.5})
    command = training_command(config.summary())
    assert "--total-tokens 7" in command
    assert "--mix 'a b.jsonl=0.5'" in command
    assert "--hidden-size 32" in command
    assert "seed" not in command
    assert "secret" not in command
    assert "rope" not in command

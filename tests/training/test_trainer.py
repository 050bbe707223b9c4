"""Runs: resuming, what is predicted, optimizers, refusals."""

import json
import shutil
from dataclasses import replace
from threading import Event

import numpy as np
import pytest
import torch

from mc_core.errors import ConfigError
from mc_core.lab.data.train_tokenizer import train_tokenizer
from mc_core.lab.training.base.batches import Batch, Stage, make_batch, thinned
from mc_core.lab.training.base.curriculum import CURRICULUM
from mc_core.lab.training.base.model import BaseModel, initialise
from mc_core.lab.training.base.trainer import BaseTrainer, train_base
from mc_core.lab.training.checkpoint import checkpoints
from mc_core.lab.training.optim import AdamW, Muon, orthogonalised
from mc_core.lab.training.sample_maker import SampleMaker
from mc_core.lab.training.schedule import rate_at
from mc_core.models.decoder import Decoder
from training_lab import STAGES, TINY

STEPS = 6


def stopping_after(stop, step):
    """A reporter that stops a run at one step."""

    def report(progress):
        if progress.phase == "train" and progress.done == step:
            stop.set()

    return report


@pytest.fixture(scope="module")
def whole_run(corpus, tmp_path_factory):
    """A finished run and its settings; whoever changes its folder takes a copy."""
    config = corpus.config(
        tmp_path_factory.mktemp("run") / "whole", total_tokens=512 * STEPS, log_steps=1, warmup_steps=2
    )
    return config, train_base(config, lambda progress: None, Event())


def test_a_resumed_run_is_the_same_run(corpus, whole_run, tmp_path):
    """N steps give the same weights, counters and losses as N/2 steps, a stop, and N/2 more in a new process' state."""
    config, whole = whole_run
    split, stop = replace(config, out=tmp_path / "split"), Event()
    first = train_base(split, stopping_after(stop, STEPS // 2), stop)
    assert not first.finished
    assert first.step == STEPS // 2
    second = train_base(split, lambda progress: None, Event())
    assert second.finished
    assert (second.step, second.tokens) == (whole.step, whole.tokens)
    for (name, a), (_, b) in zip(whole.decoder.named_parameters(), second.decoder.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    logs = [
        [json.loads(line)["losses"] for line in (run.out / "log.jsonl").read_text().splitlines()]
        for run in (config, split)
    ]
    assert logs[0] == logs[1]
    assert len(logs[0]) == STEPS


def test_a_run_learns(corpus, whole_run):
    """Even a few steps lower the loss of a batch that was not trained on, and move every parameter from its start."""
    config, trained = whole_run
    batch = make_batch(SampleMaker(corpus.train, corpus.encoder), STAGES[0], 2048, 0.5, 99, 0)
    fresh = Decoder(config.shape.config(corpus.tokenizer.get_vocab_size()))
    initialise(fresh, config.seed)
    with torch.no_grad():
        before, after = (BaseModel(decoder).token_losses(batch)[0].mean() for decoder in (fresh, trained.decoder))
    assert after < before - 0.05
    assert before < 1.2 * np.log(corpus.tokenizer.get_vocab_size())
    for (name, a), (_, b) in zip(trained.decoder.named_parameters(), fresh.named_parameters(), strict=True):
        assert not torch.equal(a, b), name


def copied(config, folder):
    """The settings of the same run in another folder."""
    shutil.copytree(config.out, folder)
    return replace(config, out=folder)


def test_another_model_cannot_go_on_from_a_run(whole_run, tmp_path):
    """Settings that shape the weights or the batches are refused, by name; others may change."""
    config = copied(whole_run[0], tmp_path / "run")
    for name, value in (("seed", 1), ("shape", replace(TINY, num_layers=1))):
        with pytest.raises(ConfigError, match=f"^{name} cannot change"):
            train_base(replace(config, **{name: value}), lambda progress: None, Event())
    more = train_base(replace(config, total_tokens=512 * (STEPS + 1)), lambda progress: None, Event())
    assert more.step == STEPS + 1


def test_checkpoints_appear_whole(whole_run, tmp_path):
    """What a kill leaves half-written is not taken for a checkpoint."""
    folder = copied(whole_run[0], tmp_path / "run").out / "checkpoints"
    (folder / "step-99999999").mkdir()
    assert [path.name for path in checkpoints(folder)] == [f"step-{STEPS:08d}"]


class Oracle:
    """Stands in for a model: logits are one-hot on a chosen token of each position."""

    def __init__(self, chosen, vocab):
        self.chosen, self.vocab = chosen, vocab

    def logits(self, hidden):
        return 50.0 * torch.nn.functional.one_hot(self.chosen, self.vocab).float()


def test_copying_the_input_scores_badly(corpus, monkeypatch):
    """Targets are the next tokens: a model that gives back its input is wrong, one that foretells the next is right."""
    maker = SampleMaker(corpus.train, corpus.encoder)
    vocab = corpus.tokenizer.get_vocab_size()
    model = BaseModel(Decoder(TINY.config(vocab)))
    monkeypatch.setattr(BaseModel, "forward", lambda self, ids, attention: ids)
    for step in range(6):
        batch = make_batch(maker, STAGES[step % 2], 512, 0.5, 0, step)
        assert torch.equal(batch.ids[:, 1:], batch.targets[:, :-1])
        batch = replace(batch, weights=torch.ones_like(batch.weights))
        for chosen, low, high in ((batch.ids, 25.0, 51.0), (batch.targets, 0.0, 0.01)):
            monkeypatch.setattr(model.decoder, "logits", Oracle(chosen.flatten(), vocab).logits)
            losses, right = model.token_losses(batch)
            assert low <= float(losses.mean()) <= high
            assert float(right.float().mean()) == (1.0 if high < 1 else pytest.approx(0.0, abs=0.2))


def test_tokens_without_weight_cost_no_logits(corpus):
    """Losses of tokens that count are the same whether or not others do; those of the others are 0."""
    maker = SampleMaker(corpus.train, corpus.encoder)
    decoder = Decoder(TINY.config(corpus.tokenizer.get_vocab_size()))
    initialise(decoder, 3)
    model = BaseModel(decoder)
    batch = make_batch(maker, STAGES[1], 512, 0.5, 0, 1)
    some = thinned(batch, np.random.default_rng(0), 0.3)
    with torch.no_grad():
        (losses, right), (fewer, fewer_right) = (model.token_losses(each) for each in (batch, some))
    counted = some.weights > 0
    assert 0 < counted.sum() < (batch.weights > 0).sum()
    torch.testing.assert_close(fewer[counted], losses[counted])
    assert torch.equal(fewer_right[counted], right[counted])
    assert not fewer[~counted].any()
    assert not fewer_right[~counted].any()


def test_a_token_sees_only_what_comes_before_it(corpus):
    """Changing a token changes no loss before the one that foretells it, under either mask."""
    maker = SampleMaker(corpus.train, corpus.encoder)
    decoder = Decoder(TINY.config(corpus.tokenizer.get_vocab_size()))
    initialise(decoder, 3)
    model = BaseModel(decoder)
    for masked in (False, True):
        stage = replace(STAGES[1], block_mask=float(masked))
        batch = make_batch(maker, stage, 512, 0.5, 0, 1)
        batch = replace(batch, weights=torch.ones_like(batch.weights))
        at = batch.tail_start + 7
        ids = batch.ids.clone()
        ids[:, at] = (ids[:, at] + 1) % decoder.config.vocab_size
        with torch.no_grad():
            before, after = model.token_losses(batch)[0], model.token_losses(replace(batch, ids=ids))[0]
        torch.testing.assert_close(before[:, :at], after[:, :at])
        assert not torch.allclose(before[:, at:], after[:, at:])


def test_a_stage_without_room_for_questions_is_refused_at_start(corpus, tmp_path):
    """A vocabulary so small that no question fits is named before hours of training, not after."""
    tokenizer = train_tokenizer(corpus.data, tmp_path / "bytes", vocab_size=272)
    assert tokenizer.get_vocab_size() == 272
    stages = (Stage(1.0, 130, (64, 64), 0.9, 0.0, (1, 3)),)
    config = corpus.config(tmp_path / "run", tokenizer=tmp_path / "bytes", stages=stages)
    with pytest.raises(ConfigError, match="too short for questions"):
        train_base(config, lambda progress: None, Event())


def test_rates_rise_hold_and_fall():
    """The schedule stays in (0, 1], rises to the full rate, holds it, and ends near the floor."""
    rates = [rate_at(step, 100, 10, 0.5, 0.02) for step in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[9] == rates[49] == 1.0
    assert rates[50:] == sorted(rates[50:], reverse=True)
    assert 0.02 < rates[-1] < 0.05


def test_the_curriculum_is_whole():
    """Its shares add up to one, so that each is what it says."""
    assert sum(stage.share for stage in CURRICULUM) == pytest.approx(1.0)


def test_newton_schulz_makes_a_step_orthogonal():
    """Singular values come out near one, for wide and tall matrices, whatever the scale."""
    for shape in ((3, 16, 40), (3, 40, 16)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 1e-3
        values = torch.linalg.svdvals(orthogonalised(x))
        assert float(values.min()) > 0.5
        assert float(values.max()) < 1.5
        u, _, v = torch.linalg.svd(x, full_matrices=False)
        assert torch.nn.functional.cosine_similarity((u @ v).flatten(1), orthogonalised(x).flatten(1)).min() > 0.9


def test_adamw_is_torchs():
    """The same updates as torch.optim.AdamW without weight decay."""
    generator = torch.Generator().manual_seed(1)
    ours, theirs = (torch.nn.Parameter(torch.ones(5, 3)) for _ in range(2))
    mine = AdamW({"w": ours})
    reference = torch.optim.AdamW([theirs], lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    for number in range(1, 6):
        ours.grad = theirs.grad = torch.randn(5, 3, generator=generator)
        mine.step(0.01, number)
        reference.step()
    torch.testing.assert_close(ours, theirs)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon came with torch 2.9")
def test_muon_is_torchs():
    """The same updates as torch.optim.Muon, up to its bfloat16 products."""
    generator = torch.Generator().manual_seed(2)
    for shape in ((24, 8), (8, 24)):
        start = torch.randn(shape, generator=generator)
        ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
        mine = Muon({"w": ours}, 0.1)
        reference = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, momentum=0.95, nesterov=True)
        for _ in range(5):
            ours.grad = theirs.grad = torch.randn(shape, generator=generator)
            mine.step(0.02)
            reference.step()
        moved, expected = ours.detach() - start, theirs.detach() - start
        assert float((moved - expected).norm() / expected.norm()) < 0.03


def test_nothing_of_a_step_depends_on_the_past(corpus):
    """A batch is a function of seed and step: asked for again, out of order, it is the same."""
    maker = SampleMaker(corpus.train, corpus.encoder)

    def batch(step, seed=0) -> Batch:
        return make_batch(maker, STAGES[0], 512, 0.5, seed, step)

    first = [batch(step) for step in range(3)]
    for step in (2, 0, 1):
        assert torch.equal(batch(step).ids, first[step].ids)
    assert batch(0, 1).ids.shape != first[0].ids.shape or not torch.equal(batch(0, 1).ids, first[0].ids)


def test_tied_weights_are_saved_once(corpus, tmp_path):
    """A checkpoint holds each parameter and its optimizer state, and no second copy of the tied embeddings."""
    config = corpus.config(tmp_path)
    trainer = BaseTrainer(config, SampleMaker(corpus.train, corpus.encoder), corpus.tokenizer.get_vocab_size())
    names = set(trainer.tensors())
    weights = {name for name in names if name.startswith("model.")}
    assert "model.lm_head.weight" not in weights
    assert len(names) == len(weights) + sum(name.startswith(("muon.", "adam.")) for name in names)
    assert sum(p.numel() for p in trainer.model.parameters()) == sum(trainer.tensors()[n].numel() for n in weights)

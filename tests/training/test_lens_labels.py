"""Counterfactual labels: legal actions, what they measure, and what entry scores learn of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mc_core.bundle.bundle import Bundle, load_bundle
from mc_core.context.working_context import WorkingContext
from mc_core.errors import ConfigError
from mc_core.lab.data.train_tokenizer import write_tokenizer
from mc_core.lab.training.base.model import initialise
from mc_core.lab.training.focus.contexts import ContextShape, open_blocks
from mc_core.lab.training.focus.passages import PassageMaker
from mc_core.lab.training.haystack import Haystack
from mc_core.lab.training.lens.counterfactual import Counterfactuals, edited, legal_actions
from mc_core.lab.training.lens.entries import entry_losses
from mc_core.lab.training.lens.labels import EntryBatch, make_labels, open_labels
from mc_core.lab.training.lens.lens_training import EntryWeights
from mc_core.models.decoder import Decoder
from mc_core.models.loading import save_decoder
from mc_core.nets.lensnet import LensNet, LensNetConfig
from training_lab import TINY, Corpus

SHAPE = ContextShape(320, 64, 32, 4)


@pytest.fixture(scope="module")
def bundle(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A tiny base of random weights."""
    model = tmp_path_factory.mktemp("labels")
    decoder = Decoder(TINY.config(corpus.tokenizer.get_vocab_size()))
    initialise(decoder, 0)
    write_tokenizer(model, corpus.tokenizer, TINY.max_positions)
    save_decoder(model, decoder, torch.float32, {})
    loaded = load_bundle(model)
    loaded.decoder.requires_grad_(False)
    return loaded


@pytest.fixture(scope="module")
def labelled(bundle: Bundle, corpus: Corpus) -> EntryBatch:
    return make_labels(bundle, Haystack(corpus.train, corpus.encoder), ("needle", "tracking"), 6, 0)


def context(tokens: int = 1200) -> WorkingContext:
    """The first block, gists of LOD2 and LOD1, two raw blocks, and the tail."""
    wc = WorkingContext(32, 400, 64)
    wc.cover(tokens)
    open_blocks(wc, [33, 34], 0)
    return wc


def test_what_is_protected_or_raw_has_no_such_action() -> None:
    """No action collapses the pinned first block, the tail or the open block, none expands a raw block."""
    wc = context()
    rows = {
        kind: {r for a in legal_actions(wc) if a.edit.kind == kind for r in a.rows} for kind in ("expand", "collapse")
    }
    protected, raw = wc.protected(), wc.levels == 0
    assert rows["expand"] == set(np.flatnonzero(~raw).tolist())
    assert not any(protected[r] for r in rows["collapse"])
    assert {r for r in range(len(wc)) if raw[r] and not protected[r]} <= rows["collapse"]


def test_every_action_can_be_committed() -> None:
    """Each legal edit gives a context that obeys its laws and differs in its entries alone."""
    wc = context()
    for action in legal_actions(wc):
        after = edited(wc, action.edit)
        change = 31 if action.edit.kind == "expand" else -31
        assert after.cost == wc.cost + change
        assert after.num_tokens == wc.num_tokens


def test_labels_are_the_difference_that_an_edit_makes(bundle: Bundle, corpus: Corpus) -> None:
    """Gain and harm equal the NLLs of the two contexts, each measured on its own; hidden gists change nothing."""
    passage = PassageMaker(Haystack(corpus.train, corpus.encoder)).text(np.random.default_rng(0), 1200, 16)
    measured, wc = Counterfactuals(bundle, SHAPE), context()
    labels = measured.labels(np.random.default_rng(1), passage, wc, 1000, np.empty(0, np.int64))
    tree = measured.tree(passage)
    before = float(measured.nll(passage, tree, [wc])[0])
    for action in legal_actions(wc):
        after = float(measured.nll(passage, tree, [edited(wc, action.edit)])[0])
        expand = action.edit.kind == "expand"
        for r in action.rows:
            told, known = (labels.gain, labels.gain_known) if expand else (labels.harm, labels.harm_known)
            assert known[r]
            assert told[r] == pytest.approx(before - after if expand else after - before, abs=2e-3)
    deep = wc.levels > 1
    assert np.abs(labels.gain[deep]).max(initial=0.0) < 2e-3
    assert np.abs(labels.gain[wc.levels == 1]).max() > 2e-3


def test_labels_are_kept(labelled: EntryBatch, tmp_path: Path) -> None:
    """What was made is read again, not made again; another number of contexts is refused by name."""
    made = []

    def make() -> EntryBatch:
        made.append(1)
        return labelled

    path = tmp_path / "labels.safetensors"
    for _ in range(2):
        found = open_labels(path, make, 6)
        assert torch.equal(found.gain, labelled.gain)
        assert torch.equal(found.entries, labelled.entries)
    assert made == [1]
    with pytest.raises(ConfigError, match="labels"):
        open_labels(path, make, 7)


def test_tails_end_with_the_question(labelled: EntryBatch, corpus: Corpus) -> None:
    """Padding stands in front, so the newest token is last, and a question ends where the reply begins."""
    assert labelled.tail_mask[:, -1].all()
    ends = [corpus.tokenizer.decode(tail[-12:].tolist(), skip_special_tokens=False) for tail in labelled.tails]
    assert any(text.endswith("assistant\n") for text in ends)


def test_entry_scores_learn(bundle: Bundle, labelled: EntryBatch) -> None:
    """Every loss is finite and has a gradient, the sum falls, and scores change if only the question does."""
    torch.manual_seed(0)
    net = LensNet(LensNetConfig(TINY.hidden_size, width=32, heads=2, layers=1, keys=2, key_dim=16, key_width=16))
    batch = labelled.rows(torch.arange(6), torch.device("cpu"))
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3)
    sums = []
    for _ in range(60):
        losses = entry_losses(net, bundle.embed, batch, EntryWeights())
        assert all(torch.isfinite(loss) for loss in losses.values())
        optimizer.zero_grad()
        losses["entries"].backward()
        optimizer.step()
        sums.append(losses["entries"].item())
    assert sums[-1] < 0.8 * sums[0]
    assert losses["utility"] != losses["rank"]
    before = net(batch.view(bundle.embed)).score
    tails = batch.tails.clone()
    tails[:, -3:] = tails[:, :3].clone() + 1
    after = net(replace(batch, tails=tails).view(bundle.embed)).score
    assert ((before - after).abs() > 1e-7)[batch.entry_mask].float().mean() > 0.9

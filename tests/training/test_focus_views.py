"""What focus training computes is what serving shows: units, places, masks, gists, targets."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mc_core.bundle.bundle import Bundle, load_bundle
from mc_core.errors import ConfigError
from mc_core.focus.focus_config import FocusConfig
from mc_core.kv.layout import SEGMENT_BLOCKS
from mc_core.lab.controller import MCController
from mc_core.lab.training.focus.batch import gist_sources
from mc_core.lab.training.focus.contexts import KINDS, ContextShape, Passage, open_blocks, sample_context, view_of
from mc_core.lab.training.focus.losses import IGNORED
from mc_core.lab.training.focus.model import FocusModel
from mc_core.nets.gistnet import GistNet
from mc_core.positions.policies import make_policy
from mc_core.tree.tree import MegaContextTree, TreeConfig
from support import VOCABULARY, write_model

K = 32
SHAPE = ContextShape(budget=384, recent=64)


def with_gists(folder: Path, vectors: int) -> Bundle:
    torch.manual_seed(3)
    dim = load_bundle(folder).decoder.config.hidden_size
    net = GistNet(dim, K, kind="mean", pooling="query", vectors=vectors).eval()
    with torch.no_grad():
        net.scale.fill_(0.5)
    return dataclasses.replace(load_bundle(folder), gistnet=net, hidden_gists=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    return with_gists(folder, 1)


@pytest.fixture(scope="module")
def several(folder: Path) -> Bundle:
    """The same with gists of four vectors."""
    return with_gists(folder, 4)


def passage(tokens: int, future: int = 0, seed: int = 0, opened: tuple[int, ...] = ()) -> Passage:
    ids = np.random.default_rng(seed).integers(3, VOCABULARY, tokens + future)
    return Passage(ids, tokens, np.ones(tokens + future, np.float32), opened)


def tree_of(bundle: Bundle, text: Passage) -> MegaContextTree:
    tree = MegaContextTree(TreeConfig(gist_dtype=torch.float16), bundle.gistnet, bundle.embed)
    tree.append(text.ids[: text.history].astype(np.int32))
    return tree


def model_of(bundle: Bundle, positions: str = "compact") -> FocusModel:
    return FocusModel(bundle.decoder, bundle.gistnet, make_policy(positions, bundle.decoder.config, K))


@pytest.mark.parametrize(("repair", "segments"), [("block", SEGMENT_BLOCKS), ("exact", None)])
@pytest.mark.parametrize("positions", ["compact", "simple", "gaussian", "gaussian_alibi"])
@pytest.mark.parametrize("vectors", [1, 4])
def test_a_view_foretells_what_the_served_context_foretells(
    request: pytest.FixtureRequest, repair: str, segments: int | None, positions: str, vectors: int
) -> None:
    """The logits after the working context are those that serving computes for the same working context."""
    text = passage(32 * 40 + 7)
    bundle: Bundle = request.getfixturevalue("bundle" if vectors == 1 else "several")
    focus = FocusConfig(budget=384 if vectors == 1 else 992, recent_tokens=64)
    controller = MCController(bundle, focus, repair=repair, positions=positions)
    served = controller.begin_inference_session(text.ids.astype(np.int32))
    assert controller.session is not None
    assert (controller.session.wc.levels > 0).any()
    shape = dataclasses.replace(SHAPE, segment_blocks=segments)
    view = view_of(dataclasses.replace(text, history=len(text.ids)), controller.session.wc, shape)
    with_future = dataclasses.replace(view, future=np.array([5]), weights=np.append(view.weights, np.float32(1)))
    model = FocusModel(bundle.decoder, bundle.gistnet, make_policy(positions, bundle.decoder.config, K))
    shown = view.gists[0]
    assert len(shown) == vectors * np.count_nonzero(controller.session.wc.levels)
    with torch.no_grad():
        output = model([with_future], model.gists([controller.session.tree], [view]))
    assert torch.allclose(output.logits[output.future][0], served.logits, atol=1e-4)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1000), kinds=st.lists(st.sampled_from(KINDS), min_size=2, max_size=4), data=st.data())
def test_views_of_a_batch_do_not_touch_each_other(
    bundle: Bundle, seed: int, kinds: list[str], data: st.DataObject
) -> None:
    """Each view's losses are the same alone and in a batch, whatever the others' lengths and levels are."""
    rng = np.random.default_rng(seed)
    passages = [passage(data.draw(st.integers(70, 1500)), 20, seed + i) for i in range(len(kinds))]
    model, views, trees = model_of(bundle), [], []
    for kind, text in zip(kinds, passages, strict=True):
        views.append(view_of(text, sample_context(rng, text, kind, SHAPE), SHAPE))  # type: ignore[arg-type]
        trees.append(tree_of(bundle, text))
    with torch.no_grad():
        together = model(views, model.gists(trees, views))
        alone = [model([view], model.gists([tree], [view])) for view, tree in zip(views, trees, strict=True)]
    assert torch.allclose(together.losses(), torch.cat([one.losses() for one in alone]), atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(tokens=st.integers(1, 6000), kind=st.sampled_from(KINDS), seed=st.integers(0, 99), data=st.data())
def test_sampled_contexts_keep_the_laws(tokens: int, kind: str, seed: int, data: st.DataObject) -> None:
    """Every sampled context tiles its history within the budget, and shows raw what the passage asks to open."""
    opened = tuple(data.draw(st.lists(st.integers(0, max(0, tokens // K - 4)), max_size=2, unique=True)))
    text = passage(tokens, 0, seed, opened if tokens > 8 * K else ())
    wc = sample_context(np.random.default_rng(seed), text, kind, SHAPE)  # type: ignore[arg-type]
    wc.check()
    raw = set(wc.indices[wc.levels == 0].tolist())
    assert set(text.opened) <= raw
    if kind == "full":
        assert (wc.levels == 0).all()


def test_targets_are_the_tokens_that_follow(bundle: Bundle) -> None:
    """A target is the next true token, never the input itself, and none stands before a gist or at the end."""
    text = passage(1200, 32)
    rng = np.random.default_rng(0)
    view = view_of(text, sample_context(rng, text, "mixed", SHAPE), SHAPE)
    model = model_of(bundle)
    with torch.no_grad():
        batch = model([view], model.gists([tree_of(bundle, text)], [view])).batch
    targets, ids = batch.targets[0], batch.ids[0]
    tail = targets[batch.history :]
    assert torch.equal(tail[:-1], ids[batch.history + 1 :])
    assert tail[-1] == IGNORED
    assert batch.future.sum() == 32
    assert torch.equal(batch.targets[batch.future], torch.from_numpy(text.ids[1200:]))


def test_a_perfect_copier_scores_badly(bundle: Bundle) -> None:
    """Logits that repeat the input get a large loss: the targets are shifted."""
    text = passage(300, 64)
    view = view_of(text, sample_context(np.random.default_rng(0), text, "full", SHAPE), SHAPE)
    model = model_of(bundle)
    with torch.no_grad():
        output = model([view], model.gists([tree_of(bundle, text)], [view]))
    inputs = output.batch.ids[output.where]
    copier = dataclasses.replace(output, logits=torch.nn.functional.one_hot(inputs, VOCABULARY) * 20.0)
    shifted = dataclasses.replace(
        output, logits=torch.nn.functional.one_hot(output.batch.targets[output.where], VOCABULARY) * 20.0
    )
    assert copier.losses().mean() > 10
    assert shifted.losses().mean() < 0.01


@pytest.mark.parametrize("vectors", [1, 4])
def test_live_gists_are_the_trees_gists(request: pytest.FixtureRequest, vectors: int) -> None:
    """The gists that carry gradients equal those that the tree keeps for serving, at every level."""
    bundle: Bundle = request.getfixturevalue("bundle" if vectors == 1 else "several")
    shape = dataclasses.replace(SHAPE, budget=384 * vectors, vectors=vectors)
    text = passage(32 * 32 * 4 + 40)
    wc = sample_context(np.random.default_rng(0), text, "coarse", shape)
    open_blocks(wc, [40], 1)
    view, tree = view_of(text, wc, shape), tree_of(bundle, text)
    ranks, levels, nodes = view.gists
    assert set(levels.tolist()) == {1, 2}
    live = model_of(bundle).gists([tree], [view])
    shown = zip(*view.nodes, strict=True)
    kept = torch.cat([tree.gist_vectors(int(level), np.array([node]))[0] for level, node in shown])
    assert len(live) == len(ranks) == vectors * len(view.nodes[0])
    assert len(levels) == len(nodes) == len(ranks)
    assert torch.allclose(live, kept.float(), atol=2e-3)
    deep = passage(2 * 32 * 32 * 32 + 90, seed=1)
    coarse = view_of(deep, sample_context(np.random.default_rng(0), deep, "coarse", shape), shape)
    assert set(coarse.gists[1].tolist()) >= {3}
    both = model_of(bundle).gists([tree, tree_of(bundle, deep)], [view, coarse])
    assert torch.allclose(model_of(bundle).made(gist_sources([text, deep], [view, coarse], K)), both, atol=2e-3)


def test_gradients_reach_gistnet_and_base(bundle: Bundle) -> None:
    """A loss after the working context moves both networks: the base, and GistNet through gists of both levels."""
    text = passage(32 * 32 * 2 + 100, 32)
    net = GistNet(bundle.gistnet.dim, K, kind="transformer")
    with torch.no_grad():
        net.scale.fill_(0.3)
    trained = dataclasses.replace(bundle, gistnet=net.eval())
    wc = sample_context(np.random.default_rng(0), text, "coarse", SHAPE)
    model, view = model_of(trained), view_of(text, wc, SHAPE)
    output = model([view], model.gists([tree_of(trained, text)], [view]))
    output.losses()[output.future].mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
    grad = bundle.decoder.embed_tokens.weight.grad
    assert grad is not None
    assert grad.abs().sum() > 0
    bundle.decoder.zero_grad(set_to_none=True)


def test_a_passage_must_have_a_history() -> None:
    """A passage without history, or with weights of another length, is refused."""
    with pytest.raises(ConfigError, match="history"):
        Passage(np.arange(4), 0, np.ones(4, np.float32))
    with pytest.raises(ConfigError, match="weights"):
        Passage(np.arange(4), 2, np.ones(3, np.float32))

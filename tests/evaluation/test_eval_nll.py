"""Loss after a working context: each view against a forward pass of the model as it is served."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch

from mc_core.bundle.bundle import Bundle
from mc_core.context.working_context import WorkingContext
from mc_core.errors import ConfigError
from mc_core.focus.focus_config import FocusConfig
from mc_core.lab.controller import MCController
from mc_core.lab.data.cache import Stream
from mc_core.lab.evaluation.nll import HORIZONS, NllPlan, NllViews, nll_suite
from mc_core.lab.evaluation.stability import ASKINGS, StabilityPlan, stability_suite
from mc_core.lab.training.focus.contexts import Passage

LENGTH, H = 1024, max(HORIZONS)


def ids(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, 380, count)


def passage(seed: int = 0) -> Passage:
    return Passage(ids(LENGTH + H, seed), LENGTH, np.ones(LENGTH + H, np.float32))


def served(bundle: Bundle, history: np.ndarray, future: np.ndarray) -> np.ndarray:
    """NLL of each future token by the serving code, all of the history raw (it fits the budget)."""
    controller = MCController(bundle, FocusConfig(budget=900, recent_tokens=64))
    step = controller.begin_inference_session(history.astype(np.int32))
    assert controller.session is not None
    assert not controller.session.wc.levels.any()
    losses = []
    for token in future:
        losses.append(-float(step.logits.log_softmax(-1)[token]))
        step = controller.inference_step(np.array([token], np.int32))
    return np.array(losses)


def test_truncation_is_what_a_truncated_session_foretells(bundle: Bundle) -> None:
    """recency equals serving the newest W tokens alone; sinks, the first block and the newest."""
    text, views = passage(), NllViews(bundle, LENGTH, "lexical", 64)
    found = views.losses([text])
    newest = text.ids[LENGTH - views.budget : LENGTH]
    sinks = np.concatenate([text.ids[:32], text.ids[LENGTH - views.budget + 32 : LENGTH]])
    future = text.ids[LENGTH : LENGTH + 20]
    assert np.allclose(found["recency"][0, :20], served(bundle, newest, future), atol=1e-4)
    assert np.allclose(found["sinks"][0, :20], served(bundle, sinks, future), atol=1e-4)
    assert not np.allclose(found["recency"], found["sinks"], atol=1e-4)


def test_losses_of_a_batch_are_those_alone(bundle: Bundle) -> None:
    """Passages do not touch each other, and each view has H losses a passage."""
    views, texts = NllViews(bundle, LENGTH, "hybrid", 64), [passage(1), passage(2)]
    both = views.losses(texts)
    for i, text in enumerate(texts):
        alone = views.losses([text])
        assert set(alone) == set(both)
        for name, values in alone.items():
            assert values.shape == (1, H)
            assert np.allclose(values[0], both[name][i], atol=1e-4)


def test_what_shows_no_gists_is_measured_with_the_stock_base(bundle: Bundle) -> None:
    """Where adapters read the gists, whole, truncated and hidden contexts have the losses of the base without them."""
    text, decoder = [passage(4)], deepcopy(bundle.decoder)
    with torch.no_grad():
        for parameter in decoder.layers.parameters():
            parameter.mul_(1.3)
    adapted = replace(bundle, decoder=decoder, hidden_gists=False)
    plain = NllViews(replace(bundle, hidden_gists=False), LENGTH, "lexical", 64).losses(text)
    found = NllViews(adapted, LENGTH, "lexical", 64, bundle.decoder).losses(text)
    assert found.keys() == plain.keys()
    for name, values in found.items():
        shows = name in ("focus", "lod1", "lod2")
        assert np.allclose(values, plain[name], atol=1e-5) != shows, name


def test_hidden_gists_change_nothing_and_shown_ones_do(bundle: Bundle) -> None:
    """With gists hidden, focus and hidden are one; with gists shown they differ, and hidden stays what it was."""
    text = [passage(3)]
    hides = NllViews(bundle, LENGTH, "lexical", 64).losses(text)
    shows = NllViews(replace(bundle, hidden_gists=False), LENGTH, "lexical", 64).losses(text)
    assert np.array_equal(hides["focus"], hides["hidden"])
    assert np.allclose(shows["hidden"], hides["hidden"], atol=1e-5)
    assert not np.allclose(shows["focus"], shows["hidden"], atol=1e-3)


def test_views_that_do_not_fit_are_left_out(bundle: Bundle) -> None:
    """A history of the window's length leaves no room for the full view; LOD2 needs a whole node of that level."""
    assert "full" not in NllViews(bundle, LENGTH, "lexical", 64).losses([passage()])
    long = 2560
    text = Passage(ids(long + H), long, np.ones(long + H, np.float32))
    found = NllViews(bundle, long, "lexical", 64).losses([text])
    assert {"lod1", "lod2"} <= set(found)
    assert "full" not in found


def test_figures_of_a_source(bundle: Bundle) -> None:
    """dNLL is the difference of the means, its interval holds it, and horizons are cut from the same losses."""
    short = Stream("short", ids(600).astype(np.uint32), np.array([0, 600]), False)
    book = Stream("book", ids(4000).astype(np.uint32), np.array([0, 4000]), True)
    plan = NllPlan((LENGTH,), samples=3, batch=2)
    found = nll_suite(bundle, [short, book], plan, "lexical", 64, lambda *told: None)
    assert [(loss.source, loss.horizon) for loss in found] == [("book", h) for h in HORIZONS]
    for loss in found:
        difference = loss.less["recency"]
        assert difference.value == pytest.approx(loss.means["focus"] - loss.means["recency"])
        assert difference.low <= difference.value <= difference.high
        assert (loss.budget, loss.samples) == (LENGTH // 4, 3)
    with pytest.raises(ConfigError, match="lengths"):
        nll_suite(bundle, [short], plan, "lexical", 64, lambda *told: None)
    with pytest.raises(ConfigError, match="lengths"):
        NllViews(bundle, 256, "lexical", 64)


def test_stability_counts_real_refocuses(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many commits as refocuses asked for, and figures that agree with what each of them reported."""
    torch.manual_seed(0)
    commits = []
    commit = WorkingContext.commit
    monkeypatch.setattr(WorkingContext, "commit", lambda wc, plan: (commits.append(plan), commit(wc, plan))[1])
    stream = Stream("chat", ids(5000).astype(np.uint32), np.array([0, 5000]), True)
    focus = FocusConfig(budget=384, recent_tokens=64)
    found = stability_suite(bundle, [stream], focus, StabilityPlan(30, 2048), lambda *told: None)
    assert found.refocuses == 30
    # One more when each of the two sessions begins, and one for each block that is timed.
    timed = ASKINGS * focus.lens_interval
    # What a turn follows further is committed as a part of its refocus: no time passes.
    assert sum(plan.elapsed for plan in commits) == 30 + 2 + timed
    assert found.tokens == 31 * 32
    assert 0 <= found.swap_rate <= found.swap_rate_max <= 1
    assert 0 < found.utilization <= 1
    assert found.residency_mean <= found.residency_p95
    assert found.focus_share == pytest.approx(
        (found.lens_seconds + found.allocator_seconds) / found.decode_seconds, abs=1e-4
    )

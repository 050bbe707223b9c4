"""The research facade runs on the engine's own parts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine_lab import FOCUS, MakeLab, random_ids
from mc_core.bundle.bundle import Bundle
from mc_core.engine.engine_config import EngineConfig
from mc_core.errors import ConfigError
from mc_core.lab.controller import MCController


def test_it_generates_what_the_engine_generates(bundle: Bundle, make_lab: MakeLab) -> None:
    """Greedy steps of the controller give the reply of a turn."""
    prompt = random_ids(700)
    with make_lab() as lab:
        expected = lab.ask(lab.session("a"), prompt, 40).ids
    controller = MCController(bundle, FOCUS)
    step, got = controller.begin_inference_session(prompt), []
    for _ in range(40):
        got.append(int(step.logits.argmax()))
        step = controller.inference_step(np.array(got[-1:], np.int32))
    assert got == expected


def test_a_refocus_follows_every_block(bundle: Bundle) -> None:
    """Steps that begin a block report a refocus, the others none."""
    controller = MCController(bundle, FOCUS)
    controller.begin_inference_session(random_ids(32 * 20 + 1))
    steps = [controller.inference_step(random_ids(1, seed)) for seed in range(64)]
    assert [i for i, step in enumerate(steps) if step.report is not None] == [31, 63]


def test_many_tokens_at_once_equal_one_by_one(bundle: Bundle) -> None:
    """Where nothing collapses, feeding tokens together or singly gives the same logits."""
    ids = random_ids(90)
    together = MCController(bundle, FOCUS, repair="exact").begin_inference_session(ids)
    singly = MCController(bundle, FOCUS, repair="exact")
    singly.begin_inference_session(ids[:40])
    for at in range(40, 90):
        step = singly.inference_step(ids[at : at + 1])
    torch.testing.assert_close(step.logits, together.logits, atol=1e-4, rtol=1e-4)


def test_misuse_is_told(bundle: Bundle) -> None:
    """Steps before a session, empty prompts and eviction without a store get clear errors."""
    with pytest.raises(ConfigError, match="begin_inference_session"):
        MCController(bundle, FOCUS).inference_step(random_ids(1))
    with pytest.raises(ConfigError, match="at least 1 token"):
        MCController(bundle, FOCUS).begin_inference_session(random_ids(0))
    with pytest.raises(ConfigError, match="hot_tokens"):
        MCController(bundle, FOCUS, engine=EngineConfig(hot_tokens=0))

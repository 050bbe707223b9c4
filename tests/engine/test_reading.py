"""One way to read a turn: the engine generates with it, the research facade feeds it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine_lab import MakeLab, random_ids
from mc_core.bundle.bundle import Bundle
from mc_core.context.entries import Entries
from mc_core.engine.engine_config import EngineConfig
from mc_core.engine.observer import RefocusTrace, SilentObserver
from mc_core.focus.focus_config import FocusConfig
from mc_core.lab.controller import InferenceStep, MCController
from mc_core.session.session import Session


class Watch(SilentObserver):
    """Keeps what each refocus of a session reported, and the working context that it left."""

    def __init__(self) -> None:
        self.session: Session | None = None
        self.seen: list[tuple[dict[str, Any], Entries]] = []

    def refocused(self, trace: RefocusTrace) -> None:
        assert self.session is not None
        self.seen.append((trace.report, self.session.wc.entries))


def logprob(step: InferenceStep, token: int) -> float:
    return float(step.logits.log_softmax(-1)[token])


@pytest.mark.parametrize("repair", ["exact", "block", "incremental"])
@pytest.mark.parametrize("interval", [32, 96])
def test_fed_and_generated_are_the_same(bundle: Bundle, make_lab: MakeLab, repair: str, interval: int) -> None:
    """The same tokens, fed one by one or generated, make the same contexts, reports and log probabilities."""
    focus = FocusConfig(budget=448, recent_tokens=64, hops=0, refocus_interval=interval)
    watch, fed = Watch(), []
    controller = MCController(bundle, focus, repair=repair)  # type: ignore[arg-type]
    with make_lab(EngineConfig(max_sessions=1), focus, repair, watch) as lab:
        session = watch.session = lab.session("a")
        for number, prompt in enumerate([random_ids(900, 1), random_ids(290, 2)]):
            reply = lab.ask(session, prompt, 150, logprobs=0)
            step = controller.inference_step(prompt) if number else controller.begin_inference_session(prompt)
            assert controller.session is not None
            for token, expected in zip(reply.ids, reply.logprobs, strict=True):
                if step.report is not None:
                    fed.append((step.report.attributes(), controller.session.wc.entries))
                assert logprob(step, token) == pytest.approx(expected, abs=1e-4)
                step = controller.inference_step(np.array([token], np.int32))
            assert session.tokens == controller.session.tokens
    assert len(fed) == len(watch.seen) >= 4
    for (report, entries), (expected_report, expected_entries) in zip(fed, watch.seen, strict=True):
        assert report == expected_report
        n = len(expected_entries)  # one less than fed, where the token after the refocus opened a block
        np.testing.assert_array_equal(entries.levels[:n], expected_entries.levels)
        np.testing.assert_array_equal(entries.indices[:n], expected_entries.indices)

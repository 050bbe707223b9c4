"""One way to read a turn: the engine generates with it, the research facade feeds it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine_lab import MakeLab, Reply, random_ids
from mc_core.bundle.bundle import Bundle
from mc_core.context.entries import Entries
from mc_core.engine.engine_config import EngineConfig
from mc_core.engine.observer import RefocusTrace, SilentObserver
from mc_core.engine.requests import Turn
from mc_core.focus.focus_config import FocusConfig
from mc_core.lab.controller import InferenceStep, MCController
from mc_core.models.sampling_params import SamplingParams
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


def test_a_question_that_the_history_holds_already_is_asked_whole(bundle: Bundle, make_lab: MakeLab) -> None:
    """A reply that is generated anew looks for all that was asked, though the turn reads its last token alone."""
    history = random_ids(3000, 1)
    asked = history[992:1056].copy()
    with make_lab(EngineConfig(max_sessions=1), FocusConfig(budget=448, recent_tokens=64)) as lab:
        opened = []
        for name, held in (("first", 0), ("again", len(asked) - 1)):
            session = lab.session(name)
            lab.engine.ingest(session, np.concatenate([history, asked[:held]])).result()
            lab.engine.commit(session).result()
            reply = Reply()
            sampling = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=1)
            lab.engine.submit(Turn(session, asked[held:], sampling, reply, held_ids=asked[:held]))
            assert reply.wait().error is None
            opened.append(set(session.raw_blocks().tolist()))
    assert opened[0] == opened[1]
    assert {31, 32} <= opened[1]

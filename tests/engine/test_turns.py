"""Turns through the engine: what they generate, what they leave behind, and what happens when they end early."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch

from engine_lab import FOCUS, Lab, MakeLab, random_ids
from mc_core.bundle.bundle import Bundle
from mc_core.engine.engine_config import EngineConfig
from mc_core.engine.requests import Event, Failed, Finished, Turn
from mc_core.engine.runner import ModelRunner
from mc_core.errors import CancelledTurnError, ConfigError, QueueFullError
from mc_core.models.attention import FullAttention
from mc_core.models.rotary import Rotary
from mc_core.models.sampler import SamplingParams
from mc_core.session.session import Session


def plain_greedy(bundle: Bundle, ids: np.ndarray, count: int) -> list[int]:
    """Greedy decoding by whole forward passes of the base model alone."""
    rotary, tokens = Rotary(bundle.decoder.config), ids.tolist()
    with torch.no_grad():
        for _ in range(count):
            x = bundle.decoder.embed(torch.tensor([tokens]))
            hidden = bundle.decoder(x, FullAttention(rotary.table(torch.arange(len(tokens))[None])))
            tokens.append(int(bundle.decoder.logits(hidden[0, -1]).argmax()))
    return tokens[len(ids) :]


@pytest.mark.parametrize("repair", ["exact", "incremental"])
def test_nothing_collapsed_is_the_base_model(make_lab: MakeLab, repair: str) -> None:
    """As long as the history fits, a reply is the one that the base model alone gives to it."""
    prompt = random_ids(150)
    with make_lab(repair=repair) as lab:
        assert lab.ask(lab.session("a"), prompt, 40).ids == plain_greedy(lab.bundle, prompt, 40)


def test_turns_of_one_session_read_on(lab: Lab) -> None:
    """A second turn goes on from the first one's history, reply included."""
    session = lab.session("a")
    first = lab.ask(session, random_ids(20, 1), 10)
    second = lab.ask(session, random_ids(5, 2), 10)
    history = np.concatenate([random_ids(20, 1), first.ids, random_ids(5, 2), second.ids])
    assert session.tokens == session.committed_tokens == len(history)
    np.testing.assert_array_equal(session.tree.ids(0, len(history)), history)
    assert second.finished is not None
    assert (second.finished.usage.cached_tokens, second.finished.usage.prompt_tokens) == (30, 5)


@pytest.mark.parametrize("repair", ["exact", "block"])
def test_a_batch_changes_nothing(make_lab: MakeLab, repair: str) -> None:
    """Sessions that decode together get the replies that each gets alone."""
    lengths = [7, 130, 900]
    with make_lab(repair=repair) as lab:
        alone = [lab.ask(lab.session(f"alone-{n}", n), random_ids(9, n), 50).ids for n in lengths]
        running = [lab.start(lab.session(f"together-{n}", n), random_ids(9, n), 50)[0] for n in lengths]
        assert [reply.wait().ids for reply in running] == alone


def test_the_context_stays_within_its_budget(lab: Lab) -> None:
    """A prompt of many times the budget and a long reply keep cost <= W and tile the whole history."""
    session = lab.session("a", 2_000)
    lab.ask(session, random_ids(4 * FOCUS.budget, 3), 200)
    session.wc.check()
    assert session.wc.num_tokens == session.tokens == 2_000 + 4 * FOCUS.budget + 200
    assert session.wc.cost <= FOCUS.budget


def test_a_cancelled_turn_leaves_no_trace(lab: Lab) -> None:
    """After a cancel the session stands at its last acknowledged token, and its next turn is as if nothing had been."""
    session, twin = lab.session("a", 500), lab.session("twin", 500)
    reply, handle = lab.start(session, random_ids(300, 1), 100_000)
    assert reply.first.wait(30)
    handle.cancel()
    assert isinstance(reply.wait().error, CancelledTurnError)
    assert reply.lasts == 1
    assert session.tokens == session.committed_tokens == 500
    session.wc.check()
    assert lab.ask(session, random_ids(9, 2), 40).ids == lab.ask(twin, random_ids(9, 2), 40).ids


def test_a_cancel_frees_the_slab(make_lab: MakeLab) -> None:
    """A cancelled turn's slab goes to whoever waits for it."""
    with make_lab(EngineConfig(max_sessions=1, max_queue=1)) as lab:
        reply, handle = lab.start(lab.session("a"), random_ids(9), 100_000)
        assert reply.first.wait(30)
        waiting, _ = lab.start(lab.session("b"), random_ids(9), 5)
        assert not waiting.first.wait(0.1)
        handle.cancel()
        assert waiting.wait().finished is not None
        assert lab.engine.stats().free_slabs == 1


def test_the_queue_is_bounded(make_lab: MakeLab) -> None:
    """One turn more than slabs and queue hold is refused at once, and the others go on."""
    with make_lab(EngineConfig(max_sessions=1, max_queue=1)) as lab:
        running = [lab.start(lab.session(name), random_ids(9), 100_000) for name in "ab"]
        with pytest.raises(QueueFullError, match="max_queue"):
            lab.start(lab.session("c"), random_ids(9))
        for reply, handle in running:
            handle.cancel()
            reply.wait()
        assert lab.ask(lab.session("d"), random_ids(9)).finished is not None


def test_who_hears_of_an_end_has_room_for_the_next(make_lab: MakeLab) -> None:
    """A turn counts no more once its end was told: who keeps as many running as there may be is never refused."""
    with make_lab(EngineConfig(max_sessions=1, max_queue=0)) as lab:
        sessions, ended = [lab.session(name) for name in "abc"], list[Event]()
        done = threading.Event()

        def submit() -> None:
            session = sessions[len(ended)]
            lab.engine.submit(Turn(session, random_ids(9), SamplingParams(max_tokens=2), sink))

        def sink(event: Event) -> None:
            if isinstance(event, Finished | Failed):
                ended.append(event)
                try:
                    submit() if len(ended) < len(sessions) else done.set()
                except QueueFullError:
                    done.set()

        submit()
        assert done.wait(60)
        assert [type(event) for event in ended] == [Finished] * len(sessions)


def test_a_stop_string_cuts_text_and_history_alike(lab: Lab) -> None:
    """The history keeps what the client was told: nothing of the stop string or behind it."""
    free = lab.ask(lab.session("free"), random_ids(9), 60)
    stop = free.text[20:23]
    session = lab.session("stopped")
    reply = lab.ask(session, random_ids(9), 60, stop=(stop,))
    assert reply.text == free.text[: free.text.index(stop)]
    assert reply.finished is not None
    assert reply.finished.reason == "stop"
    kept = session.tree.ids(9, session.tokens)
    assert lab.bundle.tokenizer.decode(kept, skip_special_tokens=False) == reply.text


def test_an_empty_prompt_is_refused(lab: Lab) -> None:
    """A turn without a token to read fails with a clear error."""
    reply = lab.ask(lab.session("a", 40), np.empty(0, np.int32))
    assert isinstance(reply.error, ConfigError)


def test_a_long_ingest_does_not_stall_a_stream(lab: Lab) -> None:
    """A turn that starts after a large ingest of another session finishes before it."""
    big = lab.session("big")
    ingest = lab.engine.ingest(big, random_ids(1_500_000))
    assert lab.ask(lab.session("small"), random_ids(9), 3).finished is not None
    assert not ingest.done()
    assert ingest.result(60) == 1_500_000


def test_a_refocus_is_planned_while_others_decode(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a step in which a reply refocuses, what others decode is asked of the device before, and waited for after."""
    steps: list[str] = []
    for owner, name in ((ModelRunner, "decode"), (Session, "propose"), (ModelRunner, "draw")):
        _noted(monkeypatch, owner, name, steps)
    sessions = [lab.session("a", 300), lab.session("b", 317)]
    running = [lab.start(session, random_ids(9, 1), 80)[0] for session in sessions]
    for reply in running:
        reply.wait()
    planned = [place for place, step in enumerate(steps) if step == "propose"][len(sessions) :]
    beside = [place for place in planned if steps[place - 1 : place + 2] == ["decode", "propose", "draw"]]
    assert len(beside) >= len(planned) // 2 > 0  # not those of the reply that is left alone at the end


def _noted(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, into: list[str]) -> None:
    real = getattr(owner, name)

    def call(*arguments: Any, **named: Any) -> Any:
        into.append(name)
        return real(*arguments, **named)

    monkeypatch.setattr(owner, name, call)

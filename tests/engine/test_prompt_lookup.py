"""Guesses that are read ahead decide nothing: a reply is what it is without them, whatever was guessed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine_lab import FOCUS, Lab, MakeLab, Reply, random_ids
from mc_core.bundle.bundle import load_bundle
from mc_core.engine.core import build_core
from mc_core.engine.engine_config import EngineConfig
from mc_core.engine.prompt_lookup import LONGEST, PromptLookup
from mc_core.engine.requests import Turn
from mc_core.engine.runner import ModelRunner
from mc_core.engine.work import Decode
from mc_core.errors import ConfigError
from mc_core.kv.session_kv import SessionKV
from mc_core.models.sampler import SamplingParams
from support import write_model

Guess = Callable[[PromptLookup, int], list[int]]


def config_of(guesses: int, **options: object) -> EngineConfig:
    return EngineConfig(max_sessions=3, lookup_tokens=guesses, share_kv=False, **options)  # type: ignore[arg-type]


@given(known=st.lists(st.integers(0, 3), max_size=40), room=st.integers(0, 10), cut=st.integers(0, 40))
def test_a_guess_is_what_followed_the_newest_place_that_is_most_alike(known: list[int], room: int, cut: int) -> None:
    """Of all earlier places that share the most of the newest tokens, up to three, the newest one tells what comes,
    whether tokens were seen at once or came one by one."""
    lookup = PromptLookup(8)
    lookup.see(np.array(known[:cut], np.int32))
    for token in known[cut:]:
        lookup.add(token)
    alike = [
        next((n for n in range(LONGEST, 0, -1) if n <= end and known[end - n : end] == known[-n:]), 0)
        for end in range(len(known))
    ]
    best = max(alike, default=0)
    place = max((end for end, n in enumerate(alike) if n == best), default=0)
    assert lookup.guess(room) == (known[place:][: min(room, 4)] if best else [])


def wrong(lookup: PromptLookup, room: int) -> list[int]:
    return np.random.default_rng(lookup._count).integers(3, 380, min(room, 8)).tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("repair", ["exact", "block", "incremental"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_reply_is_what_it_is_without_guesses(
    make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch, repair: str, temperature: float
) -> None:
    """Guessed by what stands there, and guessed wrong: tokens, log probabilities, history and focus are those
    of a reply that is read token by token, over many refocuses and two turns."""
    found: dict[str, list[tuple[list[int], list[float]]]] = {}
    guessers: dict[str, Guess | None] = {"none": None, "looked up": PromptLookup.guess, "wrong": wrong}
    for name, guess in guessers.items():
        if guess is not None:
            monkeypatch.setattr(PromptLookup, "guess", guess)
        with make_lab(config_of(8 if guess else 0), repair=repair) as lab:
            session = lab.session(f"session-{name.replace(' ', '-')}", 700)
            replies = [
                lab.ask(session, random_ids(20, turn), 150, temperature=temperature, seed=turn, logprobs=0)
                for turn in range(2)
            ]
            found[name] = [(reply.ids, reply.logprobs) for reply in replies]
            for reply in replies:
                assert reply.finished is not None
                context = reply.finished.context
                assert (context.guessed > 0) == (guess is not None)
                assert context.guessed_right <= context.guessed
                if name == "wrong":
                    assert context.guessed_right < context.guessed / 4
            history = lab.engine.read(session, 0, session.tokens).result()
            told = np.concatenate([np.concatenate([random_ids(20, turn), r.ids]) for turn, r in enumerate(replies)])
            np.testing.assert_array_equal(history[700:], told)
    for ids, logprobs in found["none"]:
        assert len(ids) == 150
        assert len(set(ids)) > 1 or not temperature
        assert not np.isnan(logprobs).any()
    for name in ("looked up", "wrong"):
        for (ids, logprobs), (expected, expected_logprobs) in zip(found[name], found["none"], strict=True):
            assert ids == expected
            np.testing.assert_allclose(logprobs, expected_logprobs, atol=1e-3)


def test_what_is_guessed_right_costs_fewer_steps(make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guess that comes is read once: the steps that decode are fewer than the tokens by what was guessed right, and
    guesses grow while they are right."""
    steps: list[int] = []
    decode = ModelRunner.decode
    monkeypatch.setattr(
        ModelRunner, "decode", lambda self, requests: steps.append(len(requests[0].tokens)) or decode(self, requests)
    )
    with make_lab(config_of(8)) as lab:
        reply = lab.ask(lab.session("session", 64), random_ids(20), 120)
    assert reply.finished is not None
    context = reply.finished.context
    assert context.guessed_right > 40
    assert len(steps) == 119 - context.guessed_right
    assert sum(steps) == len(steps) + context.guessed
    assert max(steps) == 9


@pytest.mark.parametrize("ending", ["stop string", "cancel", "length"])
def test_what_was_read_ahead_goes_with_the_turn(
    make_lab: MakeLab, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However a reply ends, nothing that was read ahead is left in the slab: the next turn is that of a session without
    guesses."""
    monkeypatch.setattr(PromptLookup, "guess", wrong)
    found = []
    for guesses in (0, 8):
        with make_lab(config_of(guesses), repair="exact") as lab:
            session = lab.session(f"session-{guesses}", 200)
            first = _ended(lab, f"session-{guesses}", session, ending)
            kv = session.kv
            assert kv is not None
            assert len(kv) <= session.tokens
            found.append((first, lab.ask(session, random_ids(20, 1), 20).ids))
    assert found[0] == found[1]


def _ended(lab: Lab, name: str, session: object, ending: str) -> list[int]:
    if ending == "cancel":
        reply, handle = lab.start(session, random_ids(20), 10_000)  # type: ignore[arg-type]
        assert reply.first.wait(60)
        handle.cancel()
        reply.wait()
        return []
    stop = ()
    if ending == "stop string":
        plain = lab.ask(lab.session(f"{name}-plain", 200), random_ids(20), 30)
        stop = (plain.text[20:24],)
    return lab.ask(session, random_ids(20), 30, stop=stop).ids  # type: ignore[arg-type]


def test_nothing_is_guessed_beside_others(make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns that decode together share a step, and read one token each; the one that is left alone guesses again."""
    seen: list[list[int]] = []
    decode = ModelRunner.decode

    def watched(runner: ModelRunner, requests: list[Decode]) -> list[torch.Tensor]:
        seen.append([len(request.tokens) for request in requests])
        return decode(runner, requests)

    monkeypatch.setattr(ModelRunner, "decode", watched)
    with make_lab(config_of(8)) as lab:
        long, _ = lab.start(lab.session("long", 64), random_ids(20), 300)
        assert long.first.wait(60)
        short = lab.ask(lab.session("short", 64, 1), random_ids(20, 1), 60)
        long.wait()
    assert short.error is None
    together = [step for step in seen if len(step) > 1]
    assert len(together) > 20
    # Who decodes while the other one refocuses is alone, and may have a guess in hand when that comes back.
    assert sum(max(step) > 1 for step in together) < len(together) / 4
    assert any(step[0] > 1 for step in seen[-60:])


@pytest.mark.parametrize("off", ["deterministic", "sources"])
def test_what_is_to_be_the_same_or_measured_is_read_one_by_one(make_lab: MakeLab, off: str) -> None:
    """With ``deterministic``, and where a reply's attention is measured, nothing is guessed."""
    with make_lab(config_of(8, deterministic=off == "deterministic")) as lab:
        session = lab.session("session", 64)
        if off == "sources":
            reply = Reply()
            lab.engine.submit(Turn(session, random_ids(20), SamplingParams(max_tokens=60), reply, sources=True))
            reply.wait()
        else:
            reply = lab.ask(session, random_ids(20), 60)
        assert reply.finished is not None
        assert reply.finished.context.guessed == 0


def test_a_step_that_fails_leaves_the_slab_as_it_was(make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guess that can't be read fails its turn alone; the session is back at its last token, and replies as ever."""
    read_on = SessionKV.read_on

    def failing(kv: SessionKV, index: int, embeddings: torch.Tensor) -> torch.Tensor:
        read_on(kv, index, embeddings)
        raise MemoryError

    with make_lab(config_of(8), repair="exact") as lab:
        session = lab.session("session", 64)
        monkeypatch.setattr(SessionKV, "read_on", failing)
        assert isinstance(lab.ask(session, random_ids(20), 120).error, MemoryError)
        assert session.tokens == 64
        monkeypatch.setattr(SessionKV, "read_on", read_on)
        again = lab.ask(session, random_ids(20), 40)
        assert again.ids == lab.ask(lab.session("other", 64), random_ids(20), 40).ids


@pytest.mark.skipif(
    "fbgemm" not in torch.backends.quantized.supported_engines, reason="torch has no int8 kernels for this CPU"
)
def test_guesses_are_for_int8_weights_unless_it_is_said_otherwise(tmp_path: Path) -> None:
    """By default nothing is guessed where a few tokens at once cost as much as one by one."""
    folder = write_model(tmp_path / "tiny")
    for weights, chosen, most in ((torch.float32, None, 0), (torch.int8, None, 8), (torch.float32, 3, 3)):
        config = EngineConfig(max_sessions=1, lookup_tokens=chosen)
        bundle = load_bundle(folder, "cpu", weights)
        assert build_core(bundle, FOCUS, config, None).guesses == most
    with pytest.raises(ConfigError, match="lookup_tokens must not be negative, got -1"):
        EngineConfig(lookup_tokens=-1)

"""Faults at every seam of the engine: its observer, store, networks, lens, sampler and sinks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from engine_lab import Lab, Reply
from mc_core.engine.observer import Moment, RefocusTrace
from mc_core.engine.requests import Delta, Event
from mc_core.focus.lens_lexical import LexicalLens
from mc_core.session.look import Look

Chance = Callable[[str], bool]
"""Whether the next call at a seam is to fail."""


class Fault(Exception):
    """What was injected; its text names the seam."""


class Faults:
    """Fails calls at seams, as often as ``chance`` says; ``injected`` counts them by seam."""

    def __init__(self) -> None:
        self.chance: Chance = lambda seam: False
        self.injected: Counter[str] = Counter()

    def at(self, seam: str) -> None:
        if self.chance(seam):
            self.injected[seam] += 1
            raise Fault(seam)

    def once(self, wanted: str, calls: int = 1) -> None:
        """Fail one call at one seam: the ``calls``-th from now on."""
        left = [calls]

        def chance(seam: str) -> bool:
            left[0] -= seam == wanted
            return seam == wanted and left[0] == 0

        self.chance = chance

    def at_random(self, seed: int, odds: dict[str, float]) -> None:
        rng = np.random.default_rng(seed)
        self.chance = lambda seam: bool(rng.random() < odds[seam])

    def before(self, seam: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, behind the seam."""

        def guarded(*args: Any, **kwargs: Any) -> Any:
            self.at(seam)
            return function(*args, **kwargs)

        return guarded

    # -- seams ---------------------------------------------------------------------------------------------------

    def queued(self, request_id: str, seconds: float) -> None:
        self.at("observer.queued")

    def decoded(self, batch: int, seconds: float) -> None:
        self.at("observer.decoded")

    def refocused(self, trace: RefocusTrace) -> None:
        self.at("observer.refocused")

    def moved(self, session_id: str, moment: Moment, look: Callable[[], Look]) -> None:
        self.at("observer.moved")
        look()

    def commit_state(self, text: str, finished: object) -> None:
        self.at("commit_state")

    def install(self, lab: Lab, patch: pytest.MonkeyPatch) -> None:
        """Put a seam before what the engine and its sessions call."""
        decoder, sampler, store = lab.bundle.decoder, lab.engine.core.runner.sampler, lab.store
        forward, sample = decoder.forward, sampler.sample

        def reads(embeddings: Any, attention: Any) -> Any:
            rows, tokens, _ = embeddings.shape
            self.at("forward" if tokens > 1 else "decode.batch" if rows > 1 else "decode")
            return forward(embeddings, attention)

        def draws(logits: Any, states: Any) -> Any:
            drawn = sample(logits, states)
            self.at("sampler.batch" if len(states) > 1 else "sampler")
            return drawn

        patch.setattr(decoder, "forward", reads)
        patch.setattr(sampler, "sample", draws)
        patch.setattr(lab.bundle.gistnet, "forward", self.before("gistnet", lab.bundle.gistnet.forward))
        for name in ("append", "score", "rewind"):
            patch.setattr(LexicalLens, name, self.before(f"lens.{name}", getattr(LexicalLens, name)))
        for name in ("write_spans", "commit"):
            called = self.before(f"store.{name}", getattr(store, name))
            patch.setattr(store, name, self.refused(f"store.{name}.future", called))

    def refused(self, seam: str, write: Callable[..., Future[Any]]) -> Callable[..., Future[Any]]:
        """A write whose call goes well, but whose future fails."""

        def writes(*args: Any) -> Future[Any]:
            try:
                self.at(seam)
            except Fault as fault:
                future: Future[Any] = Future()
                future.set_exception(fault)
                return future
            return write(*args)

        return writes


class FaultySink:
    """Takes all events, but may fail on a text; the last event is what a test looks at."""

    def __init__(self, faults: Faults) -> None:
        self.faults, self.reply = faults, Reply()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Delta):
            self.faults.at("sink")
        self.reply(event)

"""Faults at every seam of the engine: its observer, store, networks, focus, slabs, sampler and sinks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from mc_core.engine.core import EngineCore
from mc_core.engine.observer import Moment, RefocusTrace
from mc_core.engine.requests import Warmth
from mc_core.errors import StoreError
from mc_core.focus.lens_lexical import LexicalLens
from mc_core.focus.refocuser import Refocuser
from mc_core.kv.session_kv import SessionKV
from mc_core.session.look import Look
from mc_core.tree.tree import MegaContextTree

Chance = Callable[[str], bool]
"""Whether the next call at a seam is to fail."""


class Fault(Exception):
    """What was injected; its text names the seam."""


class StoreFault(Fault, StoreError):
    """What a store's future fails with."""


METHODS = (
    (LexicalLens, "append", "lens.append"),
    (LexicalLens, "score", "lens.score"),
    (LexicalLens, "rewind", "lens.rewind"),
    (Refocuser, "propose", "refocus.propose"),
    (Refocuser, "commit", "refocus.commit"),
    (Refocuser, "restore", "rollback"),
    (SessionKV, "begin", "repair"),
    (MegaContextTree, "evict", "evict"),
)
"""Class, method, seam."""
WRITES = ("write_spans", "write_gists", "commit")


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
        self.chance = lambda seam: bool(rng.random() < odds.get(seam, 0.0))

    def before(self, seam: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, behind the seam."""

        def guarded(*args: Any, **kwargs: Any) -> Any:
            self.at(seam)
            return function(*args, **kwargs)

        return guarded

    # -- seams ---------------------------------------------------------------------------------------------------

    def queued(self, request_id: str, seconds: float) -> None:
        self.at("observer.queued")

    def woke(self, source: Warmth, kv_loaded: int) -> None:
        self.at("observer.woke")

    def decoded(self, batch: int, seconds: float) -> None:
        self.at("observer.decoded")

    def refocused(self, trace: RefocusTrace) -> None:
        self.at("observer.refocused")

    def moved(self, session_id: str, moment: Moment, look: Callable[[], Look]) -> None:
        self.at("observer.moved")
        look()

    def commit_state(self, text: str, finished: object) -> None:
        self.at("commit_state")

    def install(self, core: EngineCore, patch: pytest.MonkeyPatch) -> None:
        """Put a seam before what the engine and its sessions call."""
        decoder, gistnet, sampler = core.bundle.decoder, core.bundle.gistnet, core.runner.sampler
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
        patch.setattr(gistnet, "forward", self.before("gistnet", gistnet.forward))
        for owner, name, seam in METHODS:
            patch.setattr(owner, name, self.before(seam, getattr(owner, name)))
        for name in WRITES:
            called = self.before(f"store.{name}", getattr(core.store, name))
            patch.setattr(core.store, name, self.refused(f"store.{name}.future", called))
        patch.setattr(core.store, "read_spans", self.refused("store.read_spans.future", core.store.read_spans))

    def refused(self, seam: str, call: Callable[..., Future[Any]]) -> Callable[..., Future[Any]]:
        """A call that goes well, but whose future fails."""

        def calls(*args: Any, **kwargs: Any) -> Future[Any]:
            try:
                self.at(seam)
            except Fault as fault:
                future: Future[Any] = Future()
                future.set_exception(StoreFault(str(fault)))
                return future
            return call(*args, **kwargs)

        return calls

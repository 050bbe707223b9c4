"""An engine with a store, and what its turns tell."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np

from mc_core.bundle.bundle import Bundle
from mc_core.engine.core import build_core
from mc_core.engine.engine import Engine, TurnHandle
from mc_core.engine.engine_config import EngineConfig
from mc_core.engine.observer import Observer
from mc_core.engine.requests import Delta, Event, Failed, Finished, Turn
from mc_core.focus.focus_config import FocusConfig
from mc_core.models.sampler import SamplingParams
from mc_core.session.factory import SessionFactory
from mc_core.session.session import Session
from server.stores.sqlite import SqliteStore

FOCUS = FocusConfig(budget=384, recent_tokens=64, hops=0)
"""Without hops: random ids name one another at random."""


@dataclass
class Reply:
    """What the sink of a turn was given."""

    text: str = ""
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finished: Finished | None = None
    error: Exception | None = None
    lasts: int = 0
    done: threading.Event = field(default_factory=threading.Event)
    first: threading.Event = field(default_factory=threading.Event)

    def __call__(self, event: Event) -> None:
        match event:
            case Delta(text, ids, logprobs):
                self.text += text
                self.ids += ids
                self.logprobs += [one.logprob for one in logprobs]
                self.first.set()
            case Finished():
                self.finished = event
            case Failed(error):
                self.error = error
        if isinstance(event, Finished | Failed):
            self.lasts += 1
            self.done.set()

    def wait(self) -> Reply:
        assert self.done.wait(60), "the turn did not end"
        return self


class Lab:
    """An engine, its store, and short ways to use them."""

    def __init__(
        self,
        bundle: Bundle,
        store: SqliteStore,
        config: EngineConfig,
        focus: FocusConfig,
        repair: str,
        observer: Observer | None = None,
    ) -> None:
        self.bundle, self.store = bundle, store
        self.engine = Engine(build_core(bundle, focus, config, store, repair=repair, observer=observer))
        self.factory = SessionFactory(bundle, focus)
        self.engine.start()

    def session(self, name: str, tokens: int = 0, seed: int = 0) -> Session:
        """A stored session with random history."""
        session = self.factory.create(name, "tenant", model="tiny")
        self.store.create(session.record()).result()
        session.fence = self.store.open(name, "tenant", "lab").result().fence
        if tokens:
            self.engine.ingest(session, random_ids(tokens, seed)).result()
            self.engine.commit(session).result()
        return session

    def reopen(self, name: str, *, whole: bool = True) -> Session:
        """The session as the store has it. whole: with all vectors that it lacks."""
        session = self.factory.load(self.store.open(name, "tenant", "lab").result(), self.store)
        if whole:
            self.engine.make_vectors(session).result()
        return session

    def start(
        self, session: Session, prompt: np.ndarray, max_tokens: int = 8, **sampling: object
    ) -> tuple[Reply, TurnHandle]:
        reply = Reply()
        options: dict[str, object] = {"temperature": 0.0, "ignore_eos": True, "max_tokens": max_tokens, **sampling}
        handle = self.engine.submit(Turn(session, prompt, SamplingParams(**options), reply))  # type: ignore[arg-type]
        return reply, handle

    def ask(self, session: Session, prompt: np.ndarray, max_tokens: int = 8, **sampling: object) -> Reply:
        return self.start(session, prompt, max_tokens, **sampling)[0].wait()


def random_ids(count: int, seed: int = 0) -> np.ndarray:
    """Plain tokens: no control token among them."""
    return np.random.default_rng(seed).integers(3, 380, count).astype(np.int32)


MakeLab = Callable[..., AbstractContextManager[Lab]]

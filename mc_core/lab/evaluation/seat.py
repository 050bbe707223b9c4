"""One method's place before a history: the engine, the session, its lens, and the context each question begins with."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from mc_core.context.excerpts import Excerpt
from mc_core.context.working_context import WorkingContext
from mc_core.engine.engine import Engine
from mc_core.engine.requests import Delta, Event, Failed, Finished, Turn
from mc_core.focus.allocator import make_allocator
from mc_core.focus.focus_config import FocusConfig
from mc_core.focus.refocuser import Refocuser
from mc_core.focus.view import Lens
from mc_core.lab.data.arrays import Ids, Ints, Range
from mc_core.lab.evaluation.driver import Answer
from mc_core.lab.tasks.history import all_open
from mc_core.models.sampling_params import SamplingParams
from mc_core.session.session import Session


@dataclass(eq=False)
class Seat:
    """shift(span): where a span of the history stands in the session, None if it is not in it. kept: each question is
    the next turn of one chat; else it leaves no trace."""

    engine: Engine
    session: Session
    focus: FocusConfig
    lens: Lens
    shift: Callable[[Range], Range | None]
    kept: bool = False
    context: WorkingContext = field(init=False)
    asked: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        focus, session = self.focus, self.session
        gist_cost = session.wc.gist_cost
        self.context = WorkingContext(focus.block_size, focus.budget, focus.recent_tokens, gist_cost=gist_cost)
        self.context.extend(session.tokens, reserve=focus.refocus_interval)

    def ask(self, prompt: Ids, suffix: Ids, gold: list[Range], max_tokens: int) -> Answer:
        """One turn from ``context``, and back unless it is ``kept``; gold: spans of the history."""
        session, tokens = self.session, self.session.tokens
        if not (self.kept and self.asked):
            self.engine.call(self._take).result()
        self.asked += 1
        turn = _Watched(session)
        started = time.perf_counter()
        sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0)
        self.engine.submit(Turn(session, prompt, sampling, turn, suffix_ids=suffix))
        turn.done.wait()
        seconds = time.perf_counter() - started
        if turn.error is not None:
            raise turn.error
        if not self.kept:
            self.engine.rewind(session, tokens).result()
        places = [place for place in map(self.shift, gold) if place is not None]
        is_open = len(places) == len(gold) and all_open(places, turn.raw, session.block_size)
        is_open = is_open and all(turn.excerpt.shows(*place) for place in places)
        return Answer(turn.text, is_open if gold else None, seconds)

    def _take(self) -> None:
        """Make the session this method's; on the engine's thread, between two turns."""
        session = self.session
        session.lens, session.focus_config = self.lens, self.focus
        session.refocuser = Refocuser(self.focus, self.lens, make_allocator(self.focus))
        session.wc = self.context.copy()


class _Watched:
    """The sink of a turn, called on the engine's thread; remembers what stood raw when the first token came."""

    def __init__(self, session: Session) -> None:
        self.session, self.done = session, threading.Event()
        self.text = ""
        self.error: Exception | None = None
        self.raw: Ints = np.empty(0, np.int64)
        self.excerpt = Excerpt()
        self._seen = False

    def __call__(self, event: Event) -> None:
        if not self._seen and not isinstance(event, Failed):
            # Before the first token, a turn refocuses once; a reply of no token at all never refocuses again.
            wc = self.session.wc
            self.excerpt = self.session.excerpt(0)
            self.raw, self._seen = wc.indices[wc.levels == 0], True
        match event:
            case Delta(text, _, _):
                self.text += text
            case Finished():
                self.done.set()
            case Failed(error):
                self.error = error
                self.done.set()

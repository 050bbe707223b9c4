"""Drives the engine that serves, in this process: one history is read once for all methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mc_core.bundle.bundle import Bundle
from mc_core.engine.core import build_core
from mc_core.engine.engine import Engine
from mc_core.engine.engine_config import EngineConfig
from mc_core.focus.focus_config import FocusConfig
from mc_core.lab.data.arrays import Ids, Range
from mc_core.lab.evaluation.driver import Answer
from mc_core.lab.evaluation.methods import BASELINES, Lenses, check_methods, plain_lens, reading_focus
from mc_core.lab.evaluation.prompt import Prompt
from mc_core.lab.evaluation.rag import Retriever, rag_missing
from mc_core.lab.evaluation.seat import Seat
from mc_core.lab.tasks.history import History, Question, blocks_of
from mc_core.lab.training.oracle_lens import OracleLens
from mc_core.session.factory import SessionFactory
from mc_core.session.session import Session
from mc_core.store import SessionStore

TENANT = "evaluation"


class EngineDriver:
    """lenses and baselines are the methods. Close it, or use it as a context manager."""

    def __init__(
        self,
        bundle: Bundle,
        focus: FocusConfig,
        store: SessionStore,
        prompt: Prompt,
        lenses: Sequence[str],
        baselines: Sequence[str],
        *,
        engine: EngineConfig | None = None,
        one_chat: bool = False,
    ) -> None:
        """bundle: its ``hidden_gists`` says whether gists are shown. one_chat: the lens' questions are turns of one
        chat. ConfigError for methods that it cannot do."""
        check_methods(bundle, tuple(lenses), tuple(baselines))
        self.bundle, self.store, self.prompt, self.one_chat = bundle, store, prompt, one_chat
        self.focus = reading_focus(focus, tuple(lenses))
        self.methods = (*lenses, *(name for name in BASELINES if name in baselines))
        self._engine_config = replace(engine or EngineConfig(), max_sessions=1, hot_tokens=None)
        self._engines: dict[tuple[int, bool], Engine] = {}
        self._holder: dict[str, Engine] = {}
        self._seats: dict[str, Seat] = {}
        self._retriever: Retriever | None = None
        self._sessions: list[Session] = []
        self._history: History | None = None
        self._made = 0

    def __enter__(self) -> EngineDriver:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the engines; the store stays open."""
        for engine in self._engines.values():
            engine.stop()

    def read(self, history: History) -> dict[str, str]:
        self._forget()
        self._history = history
        longest = max((len(self.prompt(q.asked.question)[0]) for q in history.questions), default=0)
        main = self._session(history.ids, self.focus)
        lenses = Lenses(main.lens, self.focus)
        skipped: dict[str, str] = {}
        for name in self.methods:
            if name in ("recency", "sinks"):
                self._seats[name] = self._window(name, history, longest)
            elif name == "rag":
                if (missing := rag_missing()) is None:
                    self._retriever = Retriever(history.ids, self.bundle.tokenizer, self.prompt)
                else:
                    skipped[name] = missing
            elif name == "full":
                reason = self._too_long(history, longest)
                if reason is None:
                    focus = replace(self.focus, budget=self._window_budget())
                    self._seats[name] = Seat(self._engine(focus.budget), main, focus, plain_lens(), lambda span: span)
                else:
                    skipped[name] = reason
            else:
                oracle = name == "oracle"
                lens = OracleLens(self.focus.neighbours) if oracle else lenses.of(name, self.bundle)
                engine = self._engine(self.focus.budget)
                self._seats[name] = Seat(engine, main, self.focus, lens, lambda span: span, kept=self.one_chat)
        return skipped

    def ask(self, method: str, question: Question, max_tokens: int) -> Answer:
        assert self._history is not None
        gold = [self._history.spans[i] for i in question.gold]
        if method == "rag":
            return self._ask_rag(question, gold, max_tokens)
        seat = self._seats[method]
        if isinstance(seat.lens, OracleLens):
            seat.lens.blocks = blocks_of(gold, self.focus.block_size)
        self._hold(seat.session, seat.engine)
        prompt, suffix = self.prompt(question.asked.question)
        return seat.ask(prompt, suffix, gold, max_tokens)

    def _ask_rag(self, question: Question, gold: list[Range], max_tokens: int) -> Answer:
        """A prompt of at most ``budget`` tokens in a session that holds nothing else; the reply comes on top of it."""
        assert self._retriever is not None
        reply = (max_tokens // self.focus.block_size + 2) * self.focus.block_size + self.focus.refocus_interval
        focus = replace(self.focus, budget=min(self.focus.budget + reply, self._window_budget()))
        found = self._retriever.ask(question.asked.question, min(self.focus.budget, focus.budget - reply))
        if "rag" not in self._seats:
            session = self._session(np.empty(0, np.int32), replace(focus, lens="recency"))
            self._seats["rag"] = Seat(self._engine(focus.budget), session, focus, plain_lens(), lambda span: span)
        seat = self._seats["rag"]
        self._hold(seat.session, seat.engine)
        answer = seat.ask(found.ids, found.suffix, [], max_tokens)
        return replace(answer, gold_open=found.holds(gold) if gold else None)

    def _window(self, name: str, history: History, longest: int) -> Seat:
        """A session of the newest tokens alone, which with the longest question just fill the budget."""
        size, focus = self.focus.block_size, self.focus
        room = (focus.budget - focus.refocus_interval - longest) // size * size
        # A text cut short begins as any text does, with what the tokenizer puts before it.
        first = len(self.bundle.tokenizer.prefix_ids) if name == "recency" else size
        newest = max(first, len(history) - (room - first))
        ids = np.concatenate([history.ids[:first], history.ids[newest:]])

        def shift(span: Range) -> Range | None:
            start, end = span
            if end <= first:
                return span
            moved = (start - newest + first, end - newest + first)
            # With sinks, a statement may begin in the first block and go on right behind it.
            return moved if start >= newest else span if newest == first else None

        session = self._session(ids, replace(focus, lens="recency"))
        return Seat(self._engine(focus.budget, hidden=True), session, focus, plain_lens(), shift)

    def _window_budget(self) -> int:
        return self.bundle.decoder.config.max_position_embeddings - self.focus.block_size

    def _too_long(self, history: History, longest: int) -> str | None:
        room = self._window_budget() - self.focus.refocus_interval - longest
        window = self.bundle.decoder.config.max_position_embeddings
        if len(history) <= room:
            return None
        return f"{len(history)} tokens do not fit the base's window of {window} positions, with a question and a reply"

    def _session(self, ids: Ids, focus: FocusConfig) -> Session:
        """A session that has read ``ids``."""
        self._made += 1
        session = SessionFactory(self.bundle, focus).create(f"evaluation-{self._made}", TENANT, model=self.bundle.name)
        self.store.create(session.record()).result()
        session.fence = self.store.open(session.id, TENANT, TENANT).result().fence
        engine = self._engine(focus.budget)
        if len(ids):
            engine.ingest(session, ids).result()
        engine.commit(session).result()
        self._sessions.append(session)
        return session

    def _engine(self, budget: int, hidden: bool | None = None) -> Engine:
        """An engine whose slab has this budget; hidden: whether gists are, the bundle's choice by default."""
        hides = self.bundle.hidden_gists if hidden is None else hidden
        key = (budget, hides)
        if key not in self._engines:
            bundle, focus = replace(self.bundle, hidden_gists=hides), replace(self.focus, budget=budget)
            self._engines[key] = Engine(build_core(bundle, focus, self._engine_config, self.store))
            self._engines[key].start()
        return self._engines[key]

    def _hold(self, session: Session, engine: Engine) -> None:
        """A slab belongs to one engine: the last one gives it back before another takes the session."""
        last = self._holder.get(session.id)
        if last is not None and last is not engine:
            last.release(session).result()
        self._holder[session.id] = engine

    def _forget(self) -> None:
        for session in self._sessions:
            if session.id in self._holder:
                self._holder.pop(session.id).release(session).result()
            self.store.delete(session.id, TENANT).result()
        self._sessions, self._seats = [], {}

"""Suite ``real``: does the focus open the evidence of questions written over real text?

Nothing is generated: each question is a turn of its own, from the context that the history leaves, up to where the
model would read its prompt. What stands raw then is decided by lens and allocator alone, so no decoder is run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from mc_core.bundle.bundle import Bundle
from mc_core.context.working_context import WorkingContext
from mc_core.focus.allocator import make_allocator
from mc_core.focus.focus_config import FocusConfig
from mc_core.focus.refocuser import Refocuser
from mc_core.focus.view import Lens, Scores
from mc_core.lab.data.arrays import Ids, Ints, Range
from mc_core.lab.evaluation.methods import Lenses, check_methods, reading_focus
from mc_core.lab.evaluation.prompt import Prompt
from mc_core.lab.evaluation.suites import Told
from mc_core.lab.tasks.history import all_open
from mc_core.lab.tasks.real_text.histories import RealHistory
from mc_core.lab.tasks.real_text.questions import RealQuestion
from mc_core.session.factory import SessionFactory
from mc_core.session.session import QUESTION_TOKENS, Session

RECENCY = "recency"
"""The newest tokens that the budget holds beside the question: what truncation leaves."""


@dataclass(frozen=True)
class Found:
    """One question by one method. raw: whether every block that holds evidence stands raw after the turn's first
    refocus; opened: blocks that stand raw then and did not before the turn, its own left out."""

    history: str
    tokens: int
    document: str
    dialogue: bool
    question: str
    overlap: str
    method: str
    raw: bool
    opened: int


def ask_real(
    bundle: Bundle,
    focus: FocusConfig,
    histories: Sequence[RealHistory],
    lenses: tuple[str, ...],
    prompt: Prompt,
    told: Told,
) -> list[Found]:
    """Every question by every lens under the same settings, and by ``RECENCY``. ConfigError for a lens that the bundle
    cannot have."""
    check_methods(bundle, lenses, ())
    found: list[Found] = []
    total, done = sum(len(history.questions) for history in histories), 0
    for history in histories:
        told("real", done, total)
        reader = Reader(bundle, reading_focus(focus, lenses), history.ids)
        for question, spans in zip(history.questions, history.spans, strict=True):
            ids, _ = prompt(question.question)
            for method in lenses:
                raw, opened = reader.ask(method, ids)
                found.append(_row(history, question, method, all_open(list(spans), raw, focus.block_size), opened))
            recent = _in_tail(spans, len(history.ids), len(ids), focus)
            found.append(_row(history, question, RECENCY, recent, 0))
            done += 1
            told("real", done, total)
    return found


@dataclass(eq=False)
class Reader:
    """A session that has read a history once, for all lenses."""

    bundle: Bundle
    focus: FocusConfig
    ids: Ids
    session: Session = field(init=False)
    context: WorkingContext = field(init=False)

    @torch.inference_mode()
    def __post_init__(self) -> None:
        factory = SessionFactory(self.bundle, self.focus)
        self.session = factory.create("real", "evaluation", model=self.bundle.name, durable=False)
        self.session.append(self.ids)
        self.context = self.session.wc.copy()
        self._lenses = Lenses(self.session.lens, self.focus)

    @torch.inference_mode()
    def ask(self, method: str, prompt: Ids) -> tuple[Ints, int]:
        """Raw blocks after a turn's first refocus, and how many it opened; the session is afterwards as before.

        As ``engine.refocus_job`` does it, but for keys and values, which no lens reads.
        """
        session, tokens = self.session, self.session.tokens
        self._take(self._lenses.of(method, self.bundle))
        session.append(prompt)
        before = session.raw_blocks()
        question = prompt[-QUESTION_TOKENS:]
        session.commit_focus(session.propose(question))
        for proposal in session.hops(question):
            session.commit_hop(proposal)
        raw = session.raw_blocks()
        session.rewind(tokens)
        return raw, len(np.setdiff1d(raw, before))

    @torch.inference_mode()
    def targets(self, method: str, prompt: Ids) -> Scores:
        """What a lens finds in all history for a turn's question; the session is afterwards as before."""
        session, tokens = self.session, self.session.tokens
        self._take(self._lenses.of(method, self.bundle))
        session.append(prompt)
        scores = session.propose(prompt[-QUESTION_TOKENS:]).scores
        session.rewind(tokens)
        session.wc = self.context.copy()
        return scores

    def _take(self, lens: Lens) -> None:
        session = self.session
        session.lens, session.focus_config = lens, self.focus
        session.refocuser = Refocuser(self.focus, lens, make_allocator(self.focus))
        session.wc = self.context.copy()


def _row(history: RealHistory, question: RealQuestion, method: str, raw: bool, opened: int) -> Found:
    return Found(
        history.name,
        len(history.ids),
        question.document,
        question.file.startswith("chat/"),
        question.question,
        question.overlap,
        method,
        raw,
        opened,
    )


def _in_tail(spans: Sequence[Range], tokens: int, prompt: int, focus: FocusConfig) -> bool:
    """Whether all evidence lies in the newest blocks that fill the budget with a question and the reply's reserve."""
    room = (focus.budget - focus.refocus_interval - prompt) // focus.block_size * focus.block_size
    return all(start >= tokens - room for start, _ in spans)

"""Questions seen through the contexts that serving shows: a history is read by a session, and its lens is asked.

Contexts that are laid out by hand hold what an answer needs and some random text; a lens opens whatever looks like the
question beside it. A base answers among look-alikes as well as it was trained among them (on-policy contexts, as in
DAgger, Ross et al. 2011).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator

from mc_core.bundle.bundle import Bundle
from mc_core.context.working_context import WorkingContext
from mc_core.errors import ConfigError
from mc_core.focus.allocator import make_allocator
from mc_core.focus.focus_config import FocusConfig
from mc_core.focus.lens_oracle import OracleLens
from mc_core.focus.refocuser import Refocuser
from mc_core.focus.view import Lens
from mc_core.lab.data.arrays import Ids
from mc_core.lab.tasks.filler import Filler
from mc_core.lab.tasks.history import History, Question, all_open, blocks_of
from mc_core.lab.tasks.plant import PlantPlan, plant
from mc_core.lab.training.focus.contexts import Passage
from mc_core.lab.training.haystack import QUESTION_WEIGHT, Haystack
from mc_core.lab.training.sample import Sample
from mc_core.session.factory import SessionFactory
from mc_core.session.session import Session

PIECE = 2048
"""Tokens of text that are taken from one place of the corpus."""


@dataclass(frozen=True)
class Seen:
    """A question as serving would show it: the passage that ends with the answer, and the context at its reply.

    then: questions that follow in the passage, each with its answer. mended: whether gold had to be opened that the
    lens had left closed.
    """

    passage: Passage
    context: WorkingContext
    then: tuple[Question, ...]
    mended: bool


class ServedQuestions:
    """Plants episodes in training text, reads it with a session of its own, and asks."""

    def __init__(self, bundle: Bundle, haystack: Haystack, recent_tokens: int, block_size: int) -> None:
        """bundle: on the CPU, with the networks that choose; ConfigError if it has no LensNet to choose with."""
        if bundle.lensnet is None:
            raise ConfigError(f"served: contexts are chosen by a lens, and {bundle.name} has no lensnet")
        self.bundle, self.haystack = bundle, haystack
        self.focus = FocusConfig(block_size=block_size, recent_tokens=recent_tokens, lens="hybrid")

    def draw(
        self, rng: Generator, tokens: int, budget: int, wanted: dict[str, int], most: int, turns: int = 1
    ) -> list[Seen]:
        """``most`` questions of one history of ``tokens`` that holds ``wanted`` of each suite, as far as they fit, each
        under ``budget`` and from the same beginning.

        Up to ``turns - 1`` others of its episode are asked after each, in the context that stands for it: that costs
        the same however many questions are learned from it.

        Gold that the lens leaves closed is opened in place of what it wanted least, as nothing else tells the answer.
        To leave such questions out would shorten lists and favour "not mentioned": it is long lists that lack a place,
        and what was never stated lacks none. Left out are those whose gold a further refocus cannot open either.
        """
        filler = Filler(self._pieces(rng, tokens), self.bundle.tokenizer)
        plan = PlantPlan(tokens, tuple(wanted), wanted, histories=1, held_out=self.haystack.held_out)
        (history,) = plant(rng, self.bundle.tokenizer, filler, plan)
        focus = replace(self.focus, budget=budget)
        session = SessionFactory(self.bundle, focus).create("training", "training", model=self.bundle.name)
        session.append(history.ids)
        beginning = session.wc.copy()
        seen: list[Seen] = []
        for question in history.questions:
            if len(seen) == most:
                break
            session.wc = beginning.copy()
            found = self._ask(session, history, question, turns)
            session.rewind(len(history))
            if found is not None:
                seen.append(found)
        return seen

    def _ask(self, session: Session, history: History, question: Question, turns: int) -> Seen | None:
        asked = question.asked
        prompt = np.array(self.haystack.prompt(asked.question), np.int32)
        session.append(prompt)
        focus = session.focus_config
        _refocus(session, session.lens, focus, prompt)
        for proposal in session.hops(prompt):
            session.commit_hop(proposal)
        others = [one for one in history.questions if one.episode == question.episode and one is not question]
        then = others[: turns - 1]
        mended = not all(_is_open(session, history, one) for one in (question, *then))
        if mended:
            oracle = OracleLens(0)
            gold = [history.spans[i] for one in (question, *then) for i in one.gold]
            oracle.blocks = blocks_of(gold, session.block_size)
            # What the lens has just opened may make room at once.
            _refocus(session, oracle, replace(focus, cooldown=0), prompt)
        if not _is_open(session, history, question):
            return None
        then = [one for one in then if _is_open(session, history, one)]
        said = [self.haystack.reply(asked.answer, asked.values, 1)]
        said += [self.haystack.turn(one.asked.question, one.asked.answer, one.asked.values, 1) for one in then]
        answer = Sample.joined(said)
        before = np.concatenate([history.ids, prompt]).astype(np.int64)
        weights = np.zeros(len(before), np.float32)
        weights[len(history) :] = QUESTION_WEIGHT
        ids, weights = np.concatenate([before, answer.ids]), np.concatenate([weights, answer.weights])
        return Seen(Passage(ids, len(before), weights), session.wc.copy(), tuple(then), mended)

    def _pieces(self, rng: Generator, tokens: int) -> list[Ids]:
        """Text of the corpus, a little more than is needed, as control tokens are left out of it."""
        count = tokens // PIECE + 2
        streams = [self.haystack.stream(rng) for _ in range(count)]
        return [self.haystack.window(rng, stream, min(tokens, PIECE)).astype(np.int32) for stream in streams]


def _is_open(session: Session, history: History, question: Question) -> bool:
    return all_open([history.spans[i] for i in question.gold], session.raw_blocks(), session.block_size)


def _refocus(session: Session, lens: Lens, focus: FocusConfig, prompt: Ids) -> None:
    session.refocuser = Refocuser(focus, lens, make_allocator(focus))
    session.commit_focus(session.propose(prompt))

"""The lexical lens: opens the blocks that share the question's rare words. No training, exact words only."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mc_core.focus.leads import Lead, find_leads, unanswered
from mc_core.focus.lens import LensParts
from mc_core.focus.lexical import Evidence, LexicalIndex
from mc_core.focus.targets import merged
from mc_core.focus.tuning import ASKED, FOLLOWED, FULL_EVIDENCE, LONG_VALUE, RECENCY_WORTH, REST
from mc_core.focus.view import Finding, LensView, Scores, lifted, recency, with_turn
from mc_core.models.words import Words

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


def make_lexical(parts: LensParts) -> LexicalLens:
    return LexicalLens(parts.block_size, parts.look_ahead, parts.neighbours, parts.words)


def in_words(targets: Ints, worth: Floats, end: int) -> Finding:
    """Places with their shares of full evidence as a finding: as sure as the best one before block ``end`` is worth.

    From ``end`` on are the turn's own blocks, which every question has.
    """
    return Finding(targets, worth, float(worth[targets < end].max(initial=0.0)))


class LexicalLens:
    """BM25 of the question against every block of the history, lifted onto the entries that cover the best ones."""

    def __init__(
        self,
        block_size: int,
        look_ahead: int,
        neighbours: int,
        words: Words | None = None,
    ) -> None:
        """look_ahead: places to open at most; neighbours: blocks around each; words: without it no leads are found."""
        self.index = LexicalIndex(block_size, words)
        self.look_ahead, self.neighbours, self.words = look_ahead, neighbours, words

    def append(self, first_block: int, ids: NDArray[np.int32]) -> None:
        self.index.append(first_block, ids)

    def rewind(self, num_blocks: int) -> None:
        self.index.rewind(num_blocks)

    def found(self, view: LensView) -> Finding:
        """What the question's own words find."""
        found, full = self._evidence(view)
        return self._finding(view, found, full)

    def _evidence(self, view: LensView) -> tuple[Evidence, float]:
        # The turn's own words stand in the turn's own blocks: they must not find themselves.
        end = view.turn_start // view.wc.block_size
        found = self.index.evidence_of(self.index.folded(view.question), end, without=view.line_blocks)
        found = found.with_echoes(view.asked_before)
        return found, max(FULL_EVIDENCE * found.unit, float(found.best.max(initial=0.0)))

    def _finding(self, view: LensView, found: Evidence, full: float) -> Finding:
        size = view.wc.block_size
        end = view.turn_start // size
        targets, worth = found.targets(self.look_ahead, self.neighbours, end, max(1, LONG_VALUE // size - 1))
        return in_words(targets, worth / np.float32(full), end)

    def score(self, view: LensView) -> Scores:
        wc = view.wc
        found, full = self._evidence(view)
        asked = self._finding(view, found, full)
        parts = [(asked.targets, asked.worth), *((lead.targets, lead.worth) for lead in view.leads)]
        targets, worth = with_turn(view, *merged(parts))
        harm = RECENCY_WORTH * recency(wc)
        self._keep_relevant(view, found, full, harm)
        return lifted(wc, np.zeros_like(harm), harm, targets, worth, found.hits(self.look_ahead))

    def leads(self, view: LensView, blocks: NDArray[np.int64], ids: NDArray[np.int32]) -> list[Lead]:
        """What the statements in opened blocks name beside what was asked, and where more is said of it."""
        if self.words is None:
            return []
        found = find_leads(self.index, self.words.ends, view.question, view.leads, blocks, ids)
        if not found:
            return []
        followed = np.concatenate([view.line_blocks, *(lead.blocks for lead in (*view.leads, *found))])
        end = view.turn_start // view.wc.block_size
        asked = self.index.folded(view.question)
        # Once for all leads of a statement: they leave the same words of the question open.
        statements = {lead.statement.tobytes(): lead.statement for lead in found if len(lead.terms)}
        still_asked = {
            key: self.index.evidence_of(unanswered(self.index, asked, self.index.folded(ids)), end, without=followed)
            for key, ids in statements.items()
        }
        return [self._with_targets(lead, still_asked.get(lead.statement.tobytes()), followed, end) for lead in found]

    def _with_targets(self, lead: Lead, asked: Evidence | None, followed: NDArray[np.int64], end: int) -> Lead:
        """The lead, what its statement lacks, and the place that it names if that is rare, outside of what was
        ``followed``; asked: what the question still asks for, None for a lead that names nothing."""
        rest = lead.rest[lead.rest < end]
        parts = [(rest, np.full(len(rest), FOLLOWED if lead.hop else REST, np.float32))]
        if asked is not None:
            found = self.index.evidence_of(lead.terms, end, without=followed)
            if float(found.best.max(initial=0.0)) >= found.unit:
                targets, worth = found.with_share(asked, ASKED).targets(1, self.neighbours, end)
                parts.append((targets, np.float32(FOLLOWED / worth.max()) * worth))
        targets, worth = merged(parts)
        return replace(lead, targets=targets, worth=worth)

    def _keep_relevant(self, view: LensView, found: Evidence, full: float, harm: NDArray[np.float32]) -> None:
        """Raw blocks that share terms with the question, though not among the targets, are not free to collapse."""
        if not len(found.blocks):
            return
        raw = np.flatnonzero(view.wc.levels == 0)
        harm[raw] = np.maximum(harm[raw], found.own_of(view.wc.indices[raw]) / np.float32(full))

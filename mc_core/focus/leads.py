"""Leads: what a found statement names in turn. They are asked for next, so that a chain is followed link by link.

"Ann shares a room with Bob" answers a question about Ann only together with what is said of Bob elsewhere (multi-hop
questions, Yang et al. 2018, arXiv 1809.09600). A lead is such a statement, or what of it was not asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mc_core.focus.lexical import LexicalIndex
from mc_core.focus.postings import PAIR, Terms, pair_terms

Bools = NDArray[np.bool_]
Ids = NDArray[np.int32]
Ints = NDArray[np.int64]

LEADS, OF_EACH = 6, 2
"""Leads of one hop, at most, and statements that one lead of the hop before finds."""
LONGEST = 64
"""Tokens of a statement, at most: longer sentences are cut."""
BEFORE, AFTER = 6, 12
"""Tokens of a statement before and after what was asked for that belong to the lead."""
TELLING = 0.3
"""Weight from which on a pair of neighbours tells something, as a share of that of a unique term."""
AS_GOOD = 0.6
"""A statement is followed if it holds this share of what the best one holds of the question."""


@dataclass(frozen=True, eq=False)
class Lead:
    """terms [t]: folded ids to look for, in order, -1 where they repeat what was asked; blocks: where they stand.

    statement: the ids that the terms are of. hop: 0 if the question itself found it, 1 if such a lead did, and so on.
    targets, worth: blocks that it names, filled in by the lens, once.
    """

    terms: Ids
    blocks: Ints
    statement: Ids
    hop: int
    targets: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    worth: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))


def find_leads(
    index: LexicalIndex, ends: Bools, question: Ids, known: Sequence[Lead], blocks: Ints, ids: Ids
) -> list[Lead]:
    """New leads in opened blocks: what those statements say that hold most of a newest lead, or of the question.

    ends [vocabulary]: token ids that end a sentence. question [t]: what was asked at first; known: the leads that were
    followed since. blocks [n] ascending, ids [n, K] of them.
    """
    asked = [index.folded(question), *(lead.terms for lead in known)]
    hop = 1 + max((lead.hop for lead in known), default=-1)
    followed = {lead.statement.tobytes() for lead in known}
    statements = [each for each in _statements(ends, blocks, ids) if each[1].tobytes() not in followed]
    folded = [index.folded(statement) for _, statement in statements]
    terms = [index.question(each).terms for each in folded]
    chosen: set[int] = set()
    for wanted in [lead.terms for lead in known if lead.hop == hop - 1] or asked:
        chosen.update(_best(index, wanted, terms))
    telling = np.concatenate([_telling(index, part) for part in asked])
    found = []
    for i in sorted(chosen):
        whole, new = _window(folded[i], telling)
        found += [Lead(part, *statements[i], hop) for part in (whole, new) if (part >= 0).any()]
    return found[:LEADS]


def _best(index: LexicalIndex, wanted: Ids, statements: Sequence[Terms]) -> list[int]:
    """The statements, as their terms, that hold most of what is wanted, best first."""
    terms, weights, unit = index.weigh(wanted)
    share = np.array([weights[np.isin(terms, held)].sum() for held in statements])
    order = np.argsort(-share, kind="stable")[:OF_EACH]
    return [int(i) for i in order if share[i] >= max(unit, AS_GOOD * share[order[0]])]


def _statements(ends: Bools, blocks: Ints, ids: Ids) -> list[tuple[Ints, Ids]]:
    """Sentences of runs of neighbouring blocks, and the blocks that each touches."""
    found = []
    for run in np.split(np.arange(len(blocks)), np.flatnonzero(np.diff(blocks) > 1) + 1):
        text, block_of = ids[run].reshape(-1), np.repeat(blocks[run], ids.shape[1])
        cuts = np.flatnonzero(ends[text]) + 1
        for part in np.split(np.arange(len(text)), cuts):
            for at in range(0, len(part), LONGEST):
                piece = part[at : at + LONGEST]
                found.append((np.unique(block_of[piece]), text[piece]))
    return found


def _window(folded: Ids, telling: Terms) -> tuple[Ids, Ids]:
    """A statement around the telling pairs that were asked with, and the same without these pairs.

    Whole, it finds "Michael Webb" though "Michael Miller" was asked for; without, nothing of the latter again.
    """
    left, right = folded[:-1], folded[1:]
    same = np.isin(pair_terms(left.clip(0), right.clip(0)), telling) & (left >= 0) & (right >= 0)
    places = np.flatnonzero(same)
    if not len(places):
        return folded, folded[:0]
    masked = np.append(same, False) | np.append(False, same)
    near = slice(max(0, int(places[0]) - BEFORE), int(places[-1]) + 2 + AFTER)
    return folded[near], np.where(masked, np.int32(-1), folded)[near]


def _telling(index: LexicalIndex, folded: Ids) -> Terms:
    """Pairs of neighbours of which both are rare: names, not "with" and a name."""
    terms, weights, unit = index.weigh(folded)
    return terms[(terms >= PAIR) & (weights >= TELLING * unit)]

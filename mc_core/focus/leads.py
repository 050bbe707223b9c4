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
from mc_core.focus.postings import NUMBER, Terms, number_terms, pair_terms
from mc_core.focus.tuning import AFTER, AS_GOOD, BEFORE, CUT_OF_EACH, LEADS, LONGEST_STATEMENT, OF_EACH, TELLING

Bools = NDArray[np.bool_]
Ids = NDArray[np.int32]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Statement:
    """A sentence, as far as it stands raw: ids [t], and the blocks that it touches.

    starts, ends: whether it begins and ends here, and not in a neighbouring block.
    """

    ids: Ids
    blocks: Ints
    starts: bool
    ends: bool


@dataclass(frozen=True, eq=False)
class Lead:
    """terms [t]: folded ids to look for, in order, -1 where they repeat what was asked; blocks: where they stand.

    statement: the ids that the terms are of. hop: 0 if the question itself found it, 1 if such a lead did, and so on.
    rest: neighbouring blocks in which the statement begins or goes on. targets, worth: blocks that it names, filled in
    by the lens, once.
    """

    terms: Ids
    blocks: Ints
    statement: Ids
    hop: int
    rest: Ints
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
    statements = [each for each in _statements(ends, blocks, ids) if each.ids.tobytes() not in followed]
    folded = [index.folded(statement.ids) for statement in statements]
    terms = [index.question(each).terms for each in folded]
    chosen: set[int] = set()
    seen: set[int] = set()  # those that are chosen, too
    for wanted in [lead.terms for lead in known if lead.hop == hop - 1 and (lead.terms >= 0).any()] or asked:
        best = _best(index, wanted, terms)
        chosen.update(best[:OF_EACH])
        seen.update(best[:CUT_OF_EACH])
    telling = np.concatenate([_telling(index, part) for part in asked])
    found, rests = [], []
    for i in sorted(seen):
        statement = statements[i]
        places = _places(index, folded[i], telling)
        low, high = _window(places)
        rest = _rest(statement, low, high)
        if i in chosen:
            near = slice(max(0, low), high)
            parts = _parts(folded[i][near], places[near], _answered(index, folded[i], asked[0], telling)[near])
            found += [Lead(part, statement.blocks, statement.ids, hop, rest) for part in parts if (part >= 0).any()]
        elif len(rest):
            rests.append(Lead(folded[i][:0], statement.blocks, statement.ids, hop, rest))
    return found[:LEADS] + rests


def _best(index: LexicalIndex, wanted: Ids, statements: Sequence[Terms]) -> list[int]:
    """The statements, as their terms, that hold most of what is wanted, best first."""
    terms, weights, unit = index.weigh(wanted)
    share = np.array([weights[np.isin(terms, held)].sum() for held in statements])
    order = np.argsort(-share, kind="stable")
    return [int(i) for i in order if share[i] >= max(unit, AS_GOOD * share[order[0]])]


def _statements(ends: Bools, blocks: Ints, ids: Ids) -> list[Statement]:
    """Sentences of runs of neighbouring blocks."""
    found = []
    for run in np.split(np.arange(len(blocks)), np.flatnonzero(np.diff(blocks) > 1) + 1):
        text, block_of = ids[run].reshape(-1), np.repeat(blocks[run], ids.shape[1])
        cuts = np.flatnonzero(ends[text]) + 1
        for part in np.split(np.arange(len(text)), cuts):
            for at in range(0, len(part), LONGEST_STATEMENT):
                piece = part[at : at + LONGEST_STATEMENT]
                first, last = int(piece[0]), int(piece[-1])
                starts, stops = first > 0 or not block_of[0], last + 1 < len(text) or bool(ends[text[-1]])
                found.append(Statement(text[piece], np.unique(block_of[piece]), starts, stops))
    return found


def unanswered(index: LexicalIndex, asked: Ids, statement: Ids) -> Ids:
    """What was asked for and is still open where a statement is known: the words that it holds are -1 [t]."""
    return np.where(_held(index, asked, statement), np.int32(-1), asked)


def _held(index: LexicalIndex, folded: Ids, other: Ids) -> Bools:
    """Which words stand in ``other`` too [t]; not digits, nor what stands before them: "T353" is one word."""
    held = np.isin(folded, other[other >= 0])
    if index.digits is None:
        return held
    digit = (folded >= 0) & index.digits[folded]
    return held & ~digit & ~np.append(digit[1:], False)


def _places(index: LexicalIndex, folded: Ids, telling: Terms) -> Bools:
    """Which tokens of a statement are of telling pairs and numbers that were asked with [t]."""
    places = _of_pairs(np.isin(_pairs(folded), telling))
    if index.digits is not None:
        digit = (folded >= 0) & index.digits[folded]
        terms, starts = number_terms(folded[None], index.digits)
        for start in starts[np.isin(terms, telling)].tolist():
            end = start + int(np.append(digit[start:], False).argmin())
            places[max(0, start - 1) : end] = True  # the whole number, and what it numbers
    return places


def _answered(index: LexicalIndex, folded: Ids, question: Ids, telling: Terms) -> Bools:
    """Which tokens of a statement only repeat the question: other places that hold them say the same of others [t].

    Not those of pairs that tell something new: of "Ann Webb" the question may know that there is an Ann.
    """
    pairs = _pairs(folded)
    new = np.isin(pairs, _telling(index, folded)) & ~np.isin(pairs, telling)
    return _held(index, folded, question) & ~_of_pairs(new)


def _pairs(folded: Ids) -> Terms:
    """Terms of neighbouring tokens [t - 1], 0 (of no pair) where one of them does not count."""
    left, right = folded[:-1], folded[1:]
    return np.where((left >= 0) & (right >= 0), pair_terms(left.clip(0), right.clip(0)), np.uint32(0))


def _of_pairs(pairs: Bools) -> Bools:
    """Tokens of the chosen pairs of neighbours [t]."""
    return np.append(pairs, False) | np.append(False, pairs)


def _window(places: Bools) -> tuple[int, int]:
    """From which token to which a statement is looked for, around the places; all of it if there are none."""
    at = np.flatnonzero(places)
    return (int(at[0]) - BEFORE, int(at[-1]) + 1 + AFTER) if len(at) else (0, len(places))


def _parts(folded: Ids, places: Bools, answered: Bools) -> list[Ids]:
    """What is looked for of a statement: all of it, what is new in it, and of that what comes after.

    Whole, it finds "Michael Webb" though "Michael Miller" was asked for; without, nothing of the latter again. What
    stands in front is the end of another sentence at times.
    """
    if not places.any():
        return [folded]
    known = places | answered
    new = np.where(known, np.int32(-1), folded)
    return [folded, new, new[int(known.argmax()) :]]


def _rest(statement: Statement, low: int, high: int) -> Ints:
    """Blocks next to a statement that its tokens from ``low`` to ``high`` reach into."""
    rest = []
    if not statement.ends and high >= len(statement.ids):
        rest.append(int(statement.blocks[-1]) + 1)
    if not statement.starts and low <= 0:
        rest.append(int(statement.blocks[0]) - 1)
    return np.array(rest, np.int64)


def _telling(index: LexicalIndex, folded: Ids) -> Terms:
    """Pairs of neighbours of which both are rare (names, not "with" and a name), and rare numbers."""
    terms, weights, unit = index.weigh(folded)
    return terms[(terms >= NUMBER) & (weights >= TELLING * unit)]

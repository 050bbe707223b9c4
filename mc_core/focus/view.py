"""What a lens is asked with, and what it answers: the currency between lenses and allocators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mc_core.context.entries import Entries
from mc_core.context.working_context import WorkingContext
from mc_core.focus.leads import Lead
from mc_core.focus.tuning import RECENCY_WORTH, TURN_WORTH
from mc_core.tree.tree import MegaContextTree


def _no_targets() -> NDArray[np.int64]:
    return np.empty(0, np.int64)


def _no_scores() -> NDArray[np.float32]:
    return np.empty(0, np.float32)


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of the n entries of a working context, in its order, and what the look-ahead found in all history.

    gain: worth of expanding each entry [n]; harm: cost of collapsing it [n]; both about 0 (none) to 1 (certain).
    targets: LOD1 nodes (= block indices) that should stand raw, best first, neighbours included [m];
    target_scores: their worth, on the same scale as gain [m]. hits: of the targets, those that were found for what they
    say; the others stand beside one, or were named by one. None: all are.
    """

    gain: NDArray[np.float32]
    harm: NDArray[np.float32]
    targets: NDArray[np.int64] = field(default_factory=_no_targets)
    target_scores: NDArray[np.float32] = field(default_factory=_no_scores)
    hits: NDArray[np.int64] | None = None

    @property
    def signed(self) -> NDArray[np.float32]:
        """gain - harm within [-1, 1]: what telemetry shows [n]."""
        return np.clip(self.gain - self.harm, -1.0, 1.0)


@dataclass(frozen=True, eq=False)
class LensView:
    """One question about one working context of n entries.

    question: what the current turn asks [t]; its newest tokens, unless ``own_from`` and ``lines`` say where the turn's
    own tokens stand (see ``mc_core.focus.question``). cursor: tokens of history.
    entry_vectors() -> [n, d], one vector an entry; question_vectors() -> [t, d], the question's embeddings: both on the
    device of the tree, and made only for a lens that asks for them. leads: what statements that were found named in
    turn, to be looked for as well. asked_before: blocks of questions of earlier turns [n], which hold the words of a
    like one and tell nothing.
    """

    wc: WorkingContext
    tree: MegaContextTree
    question: NDArray[np.int32]
    cursor: int
    entry_vectors: Callable[[], Tensor]
    question_vectors: Callable[[], Tensor]
    leads: tuple[Lead, ...] = ()
    own_from: int | None = None
    lines: tuple[tuple[int, int], ...] = ()
    asked_before: Ints = field(default_factory=_no_targets)

    @property
    def turn_start(self) -> int:
        """First token from which on all are the current turn's own; it never lies after the protected tail."""
        start = self.cursor - len(self.question) if self.own_from is None else self.own_from
        return max(0, min(start, self.wc.tail_start))

    @property
    def line_blocks(self) -> Ints:
        """Blocks before ``turn_start`` that hold lines of the question, ascending."""
        size, end = self.wc.block_size, self.turn_start // self.wc.block_size
        blocks = [np.arange(start // size, -(-stop // size)) for start, stop in self.lines]
        held = np.unique(np.concatenate([_no_targets(), *blocks]))
        return held[held < end]

    def own(self, blocks: Ints) -> NDArray[np.bool_]:
        """Which blocks are the current turn's own: not searched, for the question would find itself [n]."""
        return (blocks >= self.turn_start // self.wc.block_size) | np.isin(blocks, self.line_blocks)


@dataclass(frozen=True, eq=False)
class Finding:
    """What one way of searching found in all history: blocks, best first, distinct [m], and what each is worth [m].

    worth: on the scale that all ways share, so that what they found can be joined: 0 is nothing, ``RECENCY_WORTH`` what
    being new is worth, 1 full evidence that the block is what was asked for. certainty: that the best one is it rather
    than the next ones, 0 (one of a crowd, or nothing) to 1. Whoever searches maps its own figures to both. hits: as of
    ``Scores``.
    """

    targets: Ints
    worth: Floats
    certainty: float
    hits: Ints = field(default_factory=_no_targets)


@runtime_checkable
class FollowingLens(Protocol):
    """A lens that can tell what opened places name in turn (see ``mc_core.focus.leads``)."""

    def leads(self, view: LensView, blocks: NDArray[np.int64], ids: NDArray[np.int32]) -> list[Lead]:
        """New leads, beside those of the view, in raw ``blocks`` [n] ascending, of ``ids`` [n, K]."""
        ...


class Lens(Protocol):
    """Scores entries by what the tail asks for. One lens serves one session: it may index the session's history."""

    def append(self, first_block: int, ids: Ids) -> None:
        """Complete blocks ``ids`` [n, K] were added to the history, the first of them number ``first_block``.

        A long history comes in slices (``ingest_tokens``), between which other sessions decode on the same thread. So
        it must be done in some tens of milliseconds a slice, however long the history is by now; work that takes longer
        is to be spread over later slices. A session that comes back from the store brings all of its blocks at once, on
        a thread of its own.
        """
        ...

    def rewind(self, num_blocks: int) -> None:
        """The history was cut to its first ``num_blocks`` complete blocks."""
        ...

    def score(self, view: LensView) -> Scores:
        """Gain and harm of each entry, and the blocks of all history that the question asks for."""
        ...


Floats = NDArray[np.float32]
Ids = NDArray[np.int32]
Ints = NDArray[np.int64]


def lift(wc: WorkingContext, blocks: Ints, scores: Floats) -> Floats:
    """Best score among the blocks that each entry covers [n], 0 where there is none: a parent is its best child."""
    best = np.zeros(len(wc.levels), np.float32)
    covering = np.searchsorted(wc.starts(), blocks * wc.block_size, side="right") - 1
    inside = covering >= 0
    np.maximum.at(best, covering[inside], scores[inside])
    return best


def lifted(
    wc: WorkingContext, gain: Floats, harm: Floats, targets: Ints, scores: Floats, hits: Ints | None = None
) -> Scores:
    """Scores of entries: worth opening and keeping for their own sake [n], or for the targets that they cover."""
    wanted = lift(wc, targets, scores)
    opening = np.where(wc.levels > 0, np.maximum(gain, wanted), np.float32(0))
    return Scores(opening, np.maximum(harm, wanted), targets, scores, hits)


def recency(wc: WorkingContext) -> Floats:
    """1 for an entry that ends now, halved every W / 2 tokens further back [n]."""
    distance = (wc.num_tokens - wc.ends()).astype(np.float32)
    return np.exp2(-distance / np.float32(max(1.0, wc.budget / 2)))


def carried(entries: Entries, scores: Scores, view: LensView) -> Scores:
    """Scores of ``entries`` at the time a lens was asked -> scores of the working context as it stands now.

    The same targets, but for the turn's own blocks, which have become more. Entries that stand as they stood keep
    their own scores; what is new has none yet, as its place in time and the targets beneath it say.
    """
    wc = view.wc
    inside = scores.targets < -(-wc.num_tokens // wc.block_size)
    targets, worth = with_turn(view, scores.targets[inside], scores.target_scores[inside])
    rows = np.searchsorted(entries.starts(), wc.starts(), side="right") - 1
    stands = (np.append(entries.levels, -1)[rows] == wc.levels) & (np.append(entries.indices, -1)[rows] == wc.indices)
    gain, harm = (np.where(stands, np.append(own, 0)[rows], 0).astype(np.float32) for own in (scores.gain, scores.harm))
    return lifted(wc, gain, np.maximum(harm, RECENCY_WORTH * recency(wc)), targets, worth, scores.hits)


def with_turn(view: LensView, targets: Ints, scores: Floats) -> tuple[Ints, Floats]:
    """Targets and the current turn's blocks that may have left the protected tail; best first, distinct."""
    size = view.wc.block_size
    first, end = view.turn_start // size, min(view.wc.tail_start // size, view.cursor // size)
    own = np.concatenate([np.arange(end - 1, first - 1, -1, dtype=np.int64), view.line_blocks])
    if not len(own):
        return targets, scores
    outside = ~view.own(targets)
    blocks = np.concatenate([targets[outside], own])
    worth = np.concatenate([scores[outside], np.full(len(own), TURN_WORTH, np.float32)]).astype(np.float32)
    order = np.argsort(-worth, kind="stable")
    return blocks[order], worth[order]

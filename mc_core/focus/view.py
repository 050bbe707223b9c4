"""What a lens is asked with, and what it has to answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mc_core.context.working_context import WorkingContext
from mc_core.focus.leads import Lead
from mc_core.focus.scores import Scores
from mc_core.tree.tree import MegaContextTree


@dataclass(frozen=True, eq=False)
class LensView:
    """One question about one working context of n entries.

    tail_ids: the question, i.e. the newest tokens of the current turn, newest last [t]. cursor: tokens of history.
    entry_vectors() -> [n, d], one vector an entry; tail_vectors() -> [t, d], embeddings of the tail: both on the
    device of the tree, and made only for a lens that asks for them. leads: what statements that were found named in
    turn, to be looked for as well.
    """

    wc: WorkingContext
    tree: MegaContextTree
    tail_ids: NDArray[np.int32]
    cursor: int
    entry_vectors: Callable[[], Tensor]
    tail_vectors: Callable[[], Tensor]
    leads: tuple[Lead, ...] = ()

    @property
    def turn_start(self) -> int:
        """First token of the current turn that the question still shows; it never lies after the protected tail."""
        return max(0, min(self.cursor - len(self.tail_ids), self.wc.tail_start))


@runtime_checkable
class FollowingLens(Protocol):
    """A lens that can tell what opened places name in turn (see ``mc_core.focus.leads``)."""

    def leads(self, view: LensView, blocks: NDArray[np.int64], ids: NDArray[np.int32]) -> list[Lead]:
        """New leads, beside those of the view, in raw ``blocks`` [n] ascending, of ``ids`` [n, K]."""
        ...


class Lens(Protocol):
    """Scores entries by what the tail asks for. One lens serves one session: it may index the session's history."""

    def append(self, first_block: int, ids: NDArray[np.int32]) -> None:
        """Complete blocks ``ids`` [n, K] were added to the history, the first of them number ``first_block``."""
        ...

    def rewind(self, num_blocks: int) -> None:
        """The history was cut to its first ``num_blocks`` complete blocks."""
        ...

    def score(self, view: LensView) -> Scores:
        """Gain and harm of each entry, and the blocks of all history that the question asks for."""
        ...

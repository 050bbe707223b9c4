"""A lens whose vectors are still being made: the question's words alone answer for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mc_core.focus.lens_lexical import LexicalLens, make_lexical

if TYPE_CHECKING:
    from mc_core.focus.leads import Lead
    from mc_core.focus.lens import LensParts
    from mc_core.focus.view import Lens, LensView, Scores


class WaitingLens:
    """``lens`` indexes the history as it comes, and is not asked; the lexical lens is, which needs no more than ids."""

    def __init__(self, lens: Lens, parts: LensParts) -> None:
        own = getattr(lens, "lexical", None)
        self.lens = lens
        self._words = own if isinstance(own, LexicalLens) else make_lexical(parts)
        self._indexes = (lens,) if own is self._words else (lens, self._words)

    def append(self, first_block: int, ids: NDArray[np.int32]) -> None:
        for index in self._indexes:
            index.append(first_block, ids)

    def rewind(self, num_blocks: int) -> None:
        for index in self._indexes:
            index.rewind(num_blocks)

    def score(self, view: LensView) -> Scores:
        return self._words.score(view)

    def leads(self, view: LensView, blocks: NDArray[np.int64], ids: NDArray[np.int32]) -> list[Lead]:
        """As the lexical lens tells them."""
        return self._words.leads(view, blocks, ids)

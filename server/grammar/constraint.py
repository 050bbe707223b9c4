"""A grammar on its way through one reply."""

from __future__ import annotations

import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

from mc_core.errors import ConfigError
from mc_core.models.constraint import WORD


class GrammarConstraint:
    """Fulfils ``mc_core.models.constraint.Constraint``. A step takes some 20 us, whatever the vocabulary's size.

    The first steps into a rule take milliseconds; ``warm`` does what can be done of it beforehand.
    """

    def __init__(self, matcher: LLMatcher, size: int, end_ids: frozenset[int]) -> None:
        """size: tokens of the grammar's vocabulary."""
        self._matcher, self.end_ids = matcher, end_ids
        self._mask = np.zeros(-(-size // WORD), np.int32)
        self._ready = False
        self.complete = False

    def warm(self) -> None:
        """Compute the first token's mask, on whatever thread has time."""
        self._compute()

    def fill(self, mask: NDArray[np.int32]) -> None:
        """ConfigError if the grammar can't go on: it became too large for the library's limits."""
        self._compute()
        shared = min(len(mask), len(self._mask))
        mask[:shared] = self._mask[:shared]
        mask[shared:] = 0

    def accept(self, token: int) -> None:
        self._ready = False
        if self._matcher.consume_token(token):
            self.complete = self._matcher.is_stopped()

    def _compute(self) -> None:
        if self._ready:
            return
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        if self._matcher.is_error():
            raise ConfigError(f"the reply can't be kept to its grammar any further: {_first_line(self._matcher)}")
        self._ready = True


def _first_line(matcher: LLMatcher) -> str:
    return matcher.get_error().partition("\n")[0]

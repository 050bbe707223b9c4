"""Prompt lookup decoding (Saxena 2023): what followed the newest tokens before is read ahead, and kept if it is drawn.

Where one turn decodes alone on a CPU, a step's time goes into reading the weights: five tokens cost little more than
one. A guess needs no second model and decides nothing: each token is drawn from what the model says, as ever.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

LONGEST = 3
"""Newest tokens that are looked for together; the newest place where most of them stand wins."""
FIRST = 4
"""Tokens of the first guess. As in transformers, two more after one that was right to its end, else one less."""


class PromptLookup:
    """Guesses what comes next in one reply, and keeps what was read of it ahead.

    guessed, right: tokens that were read ahead, and those of them that came.
    """

    def __init__(self, most: int) -> None:
        """most: tokens of a guess."""
        self._ids, self._count = np.empty(0, np.int32), 0
        self._most, self._next = most, min(FIRST, most)
        self._ahead: deque[tuple[int, Tensor, Tensor]] = deque()
        self.guessed = self.right = 0

    def see(self, ids: NDArray[np.int32]) -> None:
        """From now on look in ``ids`` [n], which the reply goes on behind, and in what is added."""
        self._ids, self._count = np.concatenate([ids, np.empty(len(ids) // 4 + 64, np.int32)]), len(ids)

    def add(self, token: int) -> None:
        """The reply goes on."""
        if self._count == len(self._ids):
            self.see(self._ids)
        self._ids[self._count] = token
        self._count += 1

    def guess(self, room: int) -> list[int]:
        """At most ``room`` tokens that may come next."""
        known, most = self._ids[: self._count], min(room, self._next)
        if most < 1 or not len(known):
            return []
        at = np.flatnonzero(known[:-1] == known[-1])
        for back in range(1, min(LONGEST, len(known) - 1)):
            longer = at[at >= back]
            longer = longer[known[longer - back] == known[-1 - back]]
            if not len(longer):
                break
            at = longer
        return known[at[-1] + 1 :][:most].tolist() if len(at) else []

    def put(self, tokens: Sequence[int], hidden: Tensor, logits: Tensor) -> None:
        """A guess was read: hidden states [n, d] and logits [n, vocab] behind its tokens."""
        self._ahead.extend(zip(tokens, hidden, logits, strict=True))
        self.guessed += len(tokens)

    def take(self, token: int) -> tuple[Tensor, Tensor] | None:
        """The hidden state [d] and the logits [vocab] behind ``token`` if it was read ahead, and go on behind it."""
        if not self._ahead or self._ahead[0][0] != token:
            return None
        self.right += 1
        _, hidden, logits = self._ahead.popleft()
        if not self._ahead:
            self._next = min(self._most, self._next + 2)
        self.add(token)
        return hidden, logits

    def drop(self) -> bool:
        """Forget what was read ahead and did not come -> whether there is any, which is to leave the slab."""
        wrong = bool(self._ahead)
        if wrong:
            self._ahead.clear()
            self._next = max(1, self._next - 1)
        return wrong

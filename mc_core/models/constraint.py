"""What a reply may say: a seam for grammars. The library that knows them is the server's; the sampler only asks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

WORD = 32
"""Tokens whose permission one number of a mask holds, lowest bit first."""


class Constraint(Protocol):
    """Where one reply stands in what it may say. Asked by the engine's thread alone, once a token.

    ``complete``: nothing more may follow, so that the reply ends here. ``end_ids`` end it where the grammar lets it.
    """

    @property
    def complete(self) -> bool: ...

    @property
    def end_ids(self) -> frozenset[int]: ...

    def fill(self, mask: NDArray[np.int32]) -> None:
        """Write a bit for each token of the vocabulary: 1 where it may come next. MegaContextError if none can be told;
        nothing has changed then."""
        ...

    def accept(self, token: int) -> None:
        """The token has come. It never fails; what is wrong is told by the next ``fill``."""
        ...


def forbid(scores: Tensor, constraints: Sequence[Constraint | None]) -> None:
    """Set the scores [B, vocab] of tokens that may not come to -inf, in place; rows without a constraint are left."""
    rows = [row for row, one in enumerate(constraints) if one is not None]
    if not rows:
        return
    size = scores.shape[1]
    mask = np.zeros((len(rows), -(-size // WORD)), np.int32)
    for place, row in enumerate(rows):
        constraint = constraints[row]
        assert constraint is not None
        constraint.fill(mask[place])
    bits = torch.from_numpy(mask.view(np.uint8)).to(scores.device)
    forbidden = ((bits[:, :, None] >> torch.arange(8, dtype=torch.uint8, device=scores.device)) & 1) == 0
    forbidden = forbidden.reshape(len(rows), -1)[:, :size]
    if len(rows) == len(constraints):
        scores.masked_fill_(forbidden, -torch.inf)
        return
    at = torch.tensor(rows, device=scores.device)
    scores[at] = scores[at].masked_fill(forbidden, -torch.inf)

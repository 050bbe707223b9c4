"""Edits of a working context, and the plans that bundle them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Node = tuple[int, int]
"""(level, index); level 0 is a block of K token ids."""


@dataclass(frozen=True)
class Edit:
    """``expand``: node (level, index) gives way to its K children. ``collapse``: its K children give way to it.

    At level 1 the K children are one raw block. Either way the cost changes by ``Entries.step``: K - 1 where gists are
    shown.
    """

    kind: Literal["expand", "collapse"]
    level: int
    index: int

    @property
    def node(self) -> Node:
        return self.level, self.index


@dataclass(frozen=True)
class Plan:
    """Edits that apply in order, whole or not at all, to a working context of ``num_tokens`` tokens.

    Midway the cost may pass over the budget. cooldown: refocuses in which the edits shall not be reversed.
    hold: raw blocks that the focus wants kept, best first; growth collapses them last. elapsed: refocuses that pass
    with it: 1, or 0 for a further part of one.
    """

    edits: tuple[Edit, ...]
    num_tokens: int
    cooldown: int = 0
    hold: tuple[int, ...] = ()
    elapsed: int = 1

    @property
    def expands(self) -> int:
        return sum(edit.kind == "expand" for edit in self.edits)

    @property
    def collapses(self) -> int:
        return len(self.edits) - self.expands

    @property
    def expanded_blocks(self) -> NDArray[np.int64]:
        """Blocks that the plan makes raw, ascending: their ids must be in memory before it is committed."""
        opened = [edit.index for edit in self.edits if edit.kind == "expand" and edit.level == 1]
        return np.unique(np.array(opened, np.int64))

"""The end of a history that a turn has cut off to write it anew, and the way back if the turn fails."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mc_core.store import SessionRecord

if TYPE_CHECKING:
    from mc_core.session.session import Acknowledged


CUT_OFF = "cut_off"
"""In the state of a record at a cut: ``ids``, ``prefixes``, ``sources`` and pins that stood there before, for a turn
that never ends."""


@dataclass(frozen=True, eq=False)
class CutEnd:
    """What was cut off, and the session right behind the cut.

    ids: the acknowledged history from the cut on; staged: rows at each level that the store held with it. record and
    acknowledged: the session at the cut, which the store must take before it takes other tokens in place of those.
    """

    ids: NDArray[np.int32]
    staged: dict[int, int]
    record: SessionRecord
    acknowledged: Acknowledged

"""How the tokens of a vocabulary make words, for searches by word."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Words:
    """By token id, each [vocabulary].

    fold: what an id is taken for when words are compared ("The" and " the" for "the"), -1: for nothing. ends: whether
    it ends a sentence, or a line. stops: whether a sentence or a paragraph surely ends with it. digits: whether it is
    written in digits alone. asks: whether a question ends with it.
    """

    fold: NDArray[np.int32]
    ends: NDArray[np.bool_]
    stops: NDArray[np.bool_]
    digits: NDArray[np.bool_]
    asks: NDArray[np.bool_]

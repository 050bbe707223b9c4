"""Folding: token ids that write the same word are indexed as one, and control tokens not at all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

SPACE_MARKS = "Ġ▁ "
"""How vocabularies write the space before a word: byte-level BPE, SentencePiece, plain."""


def fold_table(pieces: Sequence[str], ignored: Iterable[int] = ()) -> NDArray[np.int32]:
    """What each token id is indexed as [vocabulary]: "The", " the" and "the" as one; -1 for the ids ``ignored``.

    pieces: the vocabulary's strings by id. Ignore control tokens: each turn repeats them, and in a novel with a chat
    after it they would look like the rarest words of all.
    """
    first: dict[str, int] = {}
    table = np.empty(len(pieces), np.int32)
    for i, piece in enumerate(pieces):
        word = piece.lstrip(SPACE_MARKS).lower() or piece
        table[i] = first.setdefault(word, i)
    table[np.fromiter(ignored, np.int64)] = -1
    return table

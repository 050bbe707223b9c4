"""What is found by word vectors, joined with what words find, and with what the lens keys find."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mc_core.focus.targets import merged, with_neighbours
from mc_core.focus.tuning import CERTAIN, FIRM, KEY_BLOCKS, MEANING, STANDS_OUT, SURE_WORDS, UNSURE
from mc_core.focus.view import Finding

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

NOTHING = Finding(np.empty(0, np.int64), np.empty(0, np.float32), 0.0)


@dataclass(frozen=True, eq=False)
class Meant:
    """blocks, best first [m], and by how many deviations their scores stand above the mean of all history [m]."""

    blocks: Ints
    above: Floats


def join(meant: Meant, words: Finding, end: int, places: int, most: int) -> tuple[Ints, Floats]:
    """At most ``most`` blocks below ``end`` in ``places`` places by both ways of searching, best first; their worths.

    Both count for every block: a rare word is evidence, and so is that all of the question's words have a near one.
    What words alone are sure of keeps its worth beside that, with all that a long value may go on in.
    """
    known, of = np.unique(np.concatenate([words.targets, meant.blocks]), return_inverse=True)
    said, near = np.zeros(len(known), np.float32), np.zeros(len(known), np.float32)
    said[of[: len(words.targets)]] = words.worth
    near[of[len(words.targets) :]] = meant.above.clip(0) / max(CERTAIN, float(meant.above.max(initial=0.0)))
    some = (said > 0) | (near > 0)
    targets, worth = with_neighbours(known[some], known[some], _worth(said[some], near[some]), 1, end, 0)
    kept = in_places(targets, places, most)
    sure = words.worth >= SURE_WORDS
    return merged([(targets[kept], worth[kept]), (words.targets[sure], words.worth[sure])])


def _worth(said: Floats, near: Floats) -> Floats:
    """Evidence of words, and of word vectors, for blocks [n] as their worths [n].

    The best block is as sure as the less sure of both is of it, but worth ``UNSURE`` at least; a block with a quarter
    of its evidence is worth half as much.
    """
    value = said + MEANING * near
    best = int(value.argmax()) if len(value) else 0
    sure = max([UNSURE, *np.minimum(said, near)[best : best + 1].tolist()])
    return (sure * np.sqrt(value / max(value.max(initial=0.0), 1e-6))).astype(np.float32)


def in_places(blocks: Ints, places: int, most: int) -> Ints:
    """Indices of the blocks to take, best first, so that they lie in at most ``places`` runs of neighbours.

    A block that would begin one run too many is passed over, so that what goes on where others stand is taken too.
    """
    taken, kept, runs = set[int](), list[int](), 0
    for i, block in enumerate(blocks.tolist()):
        more = 1 - (block - 1 in taken) - (block + 1 in taken)
        if runs + more > places:
            continue
        taken.add(block)
        kept.append(i)
        runs += more
        if len(kept) == most:
            break
    return np.array(kept, np.int64)


def with_keys(keys: Finding, joined: tuple[Ints, Floats]) -> tuple[Ints, Floats]:
    """What was joined, and what the lens keys found that stands out from all history: a few blocks, best first.

    Most questions ask for nothing that keys were trained on, and then nothing does.
    """
    kept = np.flatnonzero(keys.worth >= STANDS_OUT)[:KEY_BLOCKS]
    return merged([joined, (keys.targets[kept], np.float32(FIRM) * keys.worth[kept])])

"""Figures of suite ``real``: how often evidence stands raw, and by how much a lens beats the words alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import comb
from typing import Any

import numpy as np

from mc_core.lab.evaluation.real_text import Found
from mc_core.lab.evaluation.statistics import Estimate, bootstrap, wilson
from mc_core.lab.tasks.real_text.questions import OVERLAPS

REFERENCE = "lexical"
PARTS: Mapping[str, Callable[[Found], bool]] = {
    "all": lambda row: True,
    "dialogues": lambda row: row.dialogue,
    "texts": lambda row: not row.dialogue,
    **{overlap: (lambda row, overlap=overlap: row.overlap == overlap) for overlap in OVERLAPS},  # type: ignore[misc]
}
"""Questions that figures are given for: of all, by kind of document, by the words shared with the evidence."""


@dataclass(frozen=True)
class Share:
    """Evidence raw by one method in one part, with Wilson's interval; opened: blocks that a turn opened, mean."""

    method: str
    part: str
    raw: Estimate
    opened: float


@dataclass(frozen=True)
class Difference:
    """A method less the reference on the same questions, with the paired bootstrap's interval; gained, lost: questions
    whose evidence it alone opened, or the reference alone; p: of the exact McNemar test, two-sided."""

    method: str
    part: str
    less: Estimate
    gained: int
    lost: int
    p: float


def shares_of(rows: Sequence[Found]) -> list[Share]:
    """By method and part, in the order in which they come; parts without a question are left out."""
    found = []
    for method in dict.fromkeys(row.method for row in rows):
        for part, belongs in PARTS.items():
            mine = [row for row in rows if row.method == method and belongs(row)]
            if mine:
                opened = float(np.mean([row.opened for row in mine]))
                found.append(Share(method, part, wilson(sum(row.raw for row in mine), len(mine)), round(opened, 2)))
    return found


def differences_of(rows: Sequence[Found], seed: int = 0) -> list[Difference]:
    """Of every method against ``REFERENCE``; none without it."""
    found = []
    methods = dict.fromkeys(row.method for row in rows)
    for method in methods:
        for part, belongs in PARTS.items():
            mine, other = (
                np.array([row.raw for row in rows if row.method == name and belongs(row)], np.int64)
                for name in (method, REFERENCE)
            )
            if method != REFERENCE and len(mine) and len(mine) == len(other):
                gained, lost = int((mine > other).sum()), int((mine < other).sum())
                less = bootstrap((mine - other).astype(np.float64), seed)
                found.append(Difference(method, part, less, gained, lost, round(mcnemar(gained, lost), 6)))
    return found


def mcnemar(gained: int, lost: int) -> float:
    """How likely so uneven a split of the questions that the two methods differ in is, if neither is better."""
    n = gained + lost
    tail = sum(comb(n, i) for i in range(min(gained, lost) + 1)) / 2**n
    return min(1.0, 2 * tail)


def to_json(rows: Sequence[Found], about: Mapping[str, Any], seed: int = 0) -> dict[str, Any]:
    """All of it, with a row for each question and method."""
    return {
        **about,
        "shares": [{**asdict(share), "raw": share.raw.rounded()} for share in shares_of(rows)],
        f"less_{REFERENCE}": [{**asdict(one), "less": one.less.rounded()} for one in differences_of(rows, seed)],
        "rows": [asdict(row) for row in rows],
    }

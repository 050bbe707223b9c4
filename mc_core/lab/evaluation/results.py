"""Everything that a run of suites found, as one JSON object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from mc_core.lab.evaluation.answers import Cell, Row, cells_of
from mc_core.lab.evaluation.nll import Loss
from mc_core.lab.evaluation.stability import Stability


@dataclass(frozen=True)
class Results:
    """gists_shown: whether the model saw gists. skipped: methods left out at a length, and why; notes: what a reader
    must know besides, such as text that was repeated."""

    bundle: str
    seed: int
    settings: Mapping[str, Any]
    machine: Mapping[str, Any]
    gists_shown: bool
    rows: tuple[Row, ...] = ()
    losses: tuple[Loss, ...] = ()
    stability: Stability | None = None
    skipped: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def cells(self) -> list[Cell]:
        return cells_of(self.rows)

    def to_json(self) -> dict[str, Any]:
        return {
            "bundle": self.bundle,
            "seed": self.seed,
            "machine": dict(self.machine),
            "settings": dict(self.settings),
            "gists_shown": self.gists_shown,
            "notes": list(self.notes),
            "skipped": dict(self.skipped),
            "cells": [_cell(cell) for cell in self.cells],
            "nll": [loss.to_json() for loss in self.losses],
            "stability": None if self.stability is None else asdict(self.stability),
            "rows": [asdict(row) for row in self.rows],
        }


def _cell(cell: Cell) -> dict[str, Any]:
    gold = None if cell.gold is None else cell.gold.rounded()
    return {**asdict(cell), "gold": gold, "answers": cell.answers.rounded()}

"""What a run tells while it goes: running means, one JSON line every few steps, one callback."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor


@dataclass(frozen=True)
class TrainProgress:
    """phase: "tokenizer" (done: characters), "cache" (tokens), "labels" (of them), or "train" and "recall" (steps).

    losses in nats a token, by name: "loss" as optimised. recall: share of answers whose value was foretold whole, or of
    facts found.
    """

    phase: str
    done: int
    total: int
    note: str = ""
    tokens: int = 0
    losses: dict[str, float] | None = None
    recall: float | None = None
    tokens_per_second: float = 0.0


Report = Callable[[TrainProgress], None]


class Means:
    """Means over the steps between two log lines; kept as tensors, so that a step waits for nothing."""

    def __init__(self) -> None:
        self.sums: dict[str, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def add(self, name: str, total: Tensor, count: Tensor | None = None) -> None:
        """Add to a mean: the sum of ``count`` values, or one value."""
        total = total.detach().double()
        count = torch.ones_like(total) if count is None else count.double()
        before = self.sums.get(name)
        self.sums[name] = (total, count) if before is None else (before[0] + total, before[1] + count)

    def take(self) -> dict[str, float]:
        """The means so far (of what occurred), and start anew."""
        means = {name: float(total / count) for name, (total, count) in self.sums.items() if float(count)}
        self.sums = {}
        return means


class RunLog:
    """Appends progress to ``log.jsonl``."""

    def __init__(self, path: Path) -> None:
        self.path, self.began = path, time.monotonic()

    def write(self, progress: TrainProgress) -> None:
        """One line, with the seconds since this log was opened."""
        entry = {**asdict(progress), "seconds": round(time.monotonic() - self.began, 1)}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

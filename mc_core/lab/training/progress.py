"""What a run tells while it goes: running averages, one JSON line every few steps, one callback."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from mc_core.lab.training.base.batches import TASKS, Batch


@dataclass(frozen=True)
class TrainProgress:
    """phase: "tokenizer" (done: characters), "cache" (done: tokens) or "train" (done and total: steps).

    losses in nats a token: "loss" as optimised, "text" under the full mask, "text_tail" under the block mask (tail
    only), "recall" and "copy" on their marked tokens. recall: share of answers whose value was foretold whole.
    """

    phase: str
    done: int
    total: int
    note: str = ""
    tokens: int = 0
    losses: dict[str, float] | None = None
    recall: float | None = None
    tokens_per_second: float = 0.0


class Averages:
    """Sums over the steps between two log lines; kept as tensors, so that a step waits for nothing."""

    def __init__(self) -> None:
        self.sums: dict[str, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def add(self, batch: Batch, losses: Tensor, right: Tensor, loss: Tensor) -> None:
        """Count one step: losses and right [B, T] as ``BaseModel.token_losses`` gives them."""
        self._add("loss", loss.detach(), torch.ones((), device=loss.device))
        text = (batch.tasks == TASKS.index("text"))[:, None] & (batch.weights > 0)
        start = batch.tail_start if batch.block_mask else 0
        name = "text_tail" if batch.block_mask else "text"
        self._add(name, (losses * text)[:, start:].sum(), text[:, start:].sum())
        for task in ("recall", "copy", "memory"):
            marked = (batch.tasks == TASKS.index(task))[:, None] & (batch.marks > 0)
            self._add(task, (losses * marked).sum(), marked.sum())
        self._add("answers", *whole_answers(batch, right))
        self._add("memory_answers", *whole_answers(batch, right, "memory"))

    def take(self) -> dict[str, float]:
        """The averages so far (of what occurred), and start anew."""
        means = {name: float(total / count) for name, (total, count) in self.sums.items() if float(count)}
        self.sums = {}
        return means

    def _add(self, name: str, total: Tensor, count: Tensor) -> None:
        before = self.sums.get(name)
        total, count = total.detach().double(), count.double()
        self.sums[name] = (total, count) if before is None else (before[0] + total, before[1] + count)


def whole_answers(batch: Batch, right: Tensor, task: str = "recall") -> tuple[Tensor, Tensor]:
    """(answers with every value token right, answers) of a batch's sequences of one of TASKS, teacher-forced."""
    of_task = (batch.tasks == TASKS.index(task))[:, None]
    total = good = torch.zeros((), dtype=torch.int64, device=right.device)
    for mark in range(1, 5):
        of_answer = of_task & (batch.marks == mark)
        asked = of_answer.any(1)
        total, good = total + asked.sum(), good + (asked & (right | ~of_answer).all(1)).sum()
    return good, total


class RunLog:
    """Appends progress to ``log.jsonl``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, progress: TrainProgress, seconds: float) -> None:
        """One line; seconds: since this process began to train."""
        entry = defaultdict(dict, asdict(progress))
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**entry, "seconds": round(seconds, 1)}) + "\n")

"""What is counted of a base's batches: losses by kind of token, and answers that were foretold whole."""

from __future__ import annotations

import torch
from torch import Tensor

from mc_core.lab.training.base.batches import TASKS, Batch
from mc_core.lab.training.progress import Means


@torch.no_grad()
def count_batch(means: Means, batch: Batch, losses: Tensor, right: Tensor, prefix: str = "") -> None:
    """Add a batch to means whose names begin with ``prefix``; losses, right [B, T] are ``BaseModel.token_losses``.

    "text" under the full mask, "text_tail" under the block mask (tail only); "recall", "copy" and "memory" on their
    marked tokens; "answers" and "memory_answers": share of answers whose value was foretold whole.
    """
    text = (batch.tasks == TASKS.index("text"))[:, None] & (batch.weights > 0)
    start = batch.tail_start if batch.block_mask else 0
    name = "text_tail" if batch.block_mask else "text"
    means.add(prefix + name, (losses * text)[:, start:].sum(), text[:, start:].sum())
    for task in ("recall", "copy", "memory"):
        marked = (batch.tasks == TASKS.index(task))[:, None] & (batch.marks > 0)
        means.add(prefix + task, (losses * marked).sum(), marked.sum())
    means.add(f"{prefix}answers", *whole_answers(batch, right))
    means.add(f"{prefix}memory_answers", *whole_answers(batch, right, "memory"))


def whole_answers(batch: Batch, right: Tensor, task: str = "recall") -> tuple[Tensor, Tensor]:
    """(answers with every value token right, answers) of a batch's sequences of one of TASKS, teacher-forced."""
    of_task = (batch.tasks == TASKS.index(task))[:, None]
    total = good = torch.zeros((), dtype=torch.int64, device=right.device)
    for mark in range(1, 5):
        of_answer = of_task & (batch.marks == mark)
        asked = of_answer.any(1)
        total, good = total + asked.sum(), good + (asked & (right | ~of_answer).all(1)).sum()
    return good, total

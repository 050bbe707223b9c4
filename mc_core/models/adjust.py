"""Logit bias and penalties: they touch few tokens of a vocabulary, so all rows' entries are changed in one go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mc_core.models.sampling_params import SamplingParams


class TokenCounts:
    """Distinct tokens of a reply and how often each came; arrays that grow by doubling, so a token costs O(1)."""

    def __init__(self) -> None:
        self._slots: dict[int, int] = {}
        self._ids, self._counts = np.zeros(64, np.int64), np.zeros(64, np.float32)

    def add(self, token: int) -> None:
        """Count one more token."""
        slot = self._slots.setdefault(token, len(self._slots))
        if slot == len(self._ids):
            self._ids, self._counts = (np.concatenate([a, np.zeros_like(a)]) for a in (self._ids, self._counts))
        self._ids[slot] = token
        self._counts[slot] += 1

    @property
    def ids(self) -> NDArray[np.int64]:
        """Distinct tokens, in the order they first came, [n]."""
        return self._ids[: len(self._slots)]

    @property
    def counts(self) -> NDArray[np.float32]:
        """How often each of ``ids`` came, [n]."""
        return self._counts[: len(self._slots)]


class TokenBias:
    """What a request adds to the logits of single tokens."""

    def __init__(self, bias: Mapping[int, float]) -> None:
        self.ids = np.fromiter(bias.keys(), np.int64, len(bias))
        self.values = np.fromiter(bias.values(), np.float32, len(bias))


def add_bias(scores: Tensor, biases: Sequence[TokenBias | None]) -> None:
    """Add each row's bias to its scores [B, vocab], in place."""
    rows = [row for row, bias in enumerate(biases) if bias is not None]
    chosen = [bias for bias in biases if bias is not None]
    if chosen:
        index = _index(rows, [bias.ids for bias in chosen], scores.device)
        values = np.concatenate([bias.values for bias in chosen])
        scores.index_put_(index, torch.from_numpy(values).to(scores.device), accumulate=True)


def penalise(scores: Tensor, params: Sequence[SamplingParams], counts: Sequence[TokenCounts | None]) -> None:
    """Repetition (Keskar et al. 2019, arXiv 1909.05858), then OpenAI's frequency and presence penalties, in place."""
    rows = [row for row, count in enumerate(counts) if count is not None]
    chosen = [count for count in counts if count is not None]
    if not any(len(count.ids) for count in chosen):
        return
    index = _index(rows, [count.ids for count in chosen], scores.device)
    knobs = [(p.repetition_penalty, p.frequency_penalty, p.presence_penalty) for p in (params[row] for row in rows)]
    spread = np.repeat(np.array(knobs, np.float32), [len(count.ids) for count in chosen], axis=0)
    numbers = np.column_stack([spread, np.concatenate([count.counts for count in chosen])])
    repetition, frequency, presence, times = torch.from_numpy(numbers).to(scores.device).unbind(1)
    old = scores[index]
    weakened = torch.where(old > 0, old / repetition, old * repetition)
    scores.index_put_(index, weakened - frequency * times - presence)


def _index(rows: list[int], ids: list[NDArray[np.int64]], device: torch.device) -> tuple[Tensor, Tensor]:
    """(row numbers, token ids) of all entries, on the device in one copy."""
    spread = np.repeat(np.array(rows, np.int64), [len(some) for some in ids])
    row_of, token = torch.from_numpy(np.stack([spread, np.concatenate(ids)])).to(device)
    return row_of, token

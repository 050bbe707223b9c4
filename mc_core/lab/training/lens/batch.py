"""Samples of a step as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mc_core.lab.data.arrays import Ints
from mc_core.lab.training.lens.samples import LensSample


@dataclass(frozen=True, eq=False)
class LensBatch:
    """blocks [n, K]; tails [Q, t] newest last, tail_mask [Q, t] True = real; a row is one thing to find.

    query [R]: the row's tail; positive, negative [R, n] bool; kind [R]: index into ``kinds``.
    """

    blocks: Tensor
    tails: Tensor
    tail_mask: Tensor
    query: Tensor
    positive: Tensor
    negative: Tensor
    kind: Tensor
    kinds: tuple[str, ...]


def collate(samples: Sequence[LensSample]) -> LensBatch:
    """Blocks of all samples together. Another sample's blocks are wrong unless it is of the same episodes' kind."""
    kinds = tuple(sorted({sample.kind for sample in samples}))
    blocks = np.concatenate([sample.blocks for sample in samples])
    of_sample = np.repeat(np.arange(len(samples)), [len(sample.blocks) for sample in samples])
    of_kind = np.array([kinds.index(sample.kind) for sample in samples])
    rows = [(number, wanted) for number, sample in enumerate(samples) for wanted in sample.wanted]
    first_block = np.cumsum([0, *(len(sample.blocks) for sample in samples)])
    first_tail = np.cumsum([0, *(len(sample.tails) for sample in samples)])
    positive = np.zeros((len(rows), len(blocks)), bool)
    negative = np.ones((len(rows), len(blocks)), bool)
    for row, (number, wanted) in enumerate(rows):
        if samples[number].kind not in ("text", "reply"):
            negative[row] = (of_kind[of_sample] != of_kind[number]) | (of_sample == number)
        positive[row, first_block[number] + np.array(wanted.blocks)] = True
        negative[row, first_block[number] + np.array([*wanted.blocks, *wanted.others])] = False
    tails, mask = padded([tail for sample in samples for tail in sample.tails])
    return LensBatch(
        torch.from_numpy(blocks.astype(np.int64)),
        tails,
        mask,
        torch.tensor([int(first_tail[number]) + wanted.query for number, wanted in rows]),
        torch.from_numpy(positive),
        torch.from_numpy(negative),
        torch.tensor([int(of_kind[number]) for number, _ in rows]),
        kinds,
    )


def padded(tails: Sequence[Ints]) -> tuple[Tensor, Tensor]:
    """Tails as one array [Q, t], padded in front, and what of it is real."""
    longest = max(1, *(len(tail) for tail in tails)) if tails else 1
    ids, mask = np.zeros((len(tails), longest), np.int64), np.zeros((len(tails), longest), bool)
    for row, tail in enumerate(tails):
        if len(tail):
            ids[row, -len(tail) :], mask[row, -len(tail) :] = tail, True
    return torch.from_numpy(ids), torch.from_numpy(mask)

"""What a reply pays attention to: summed up slot by slot on the device, unit by unit on the host.

Each token of a reply is drawn from one step of attention over the slab. What such a step pays each slot is added up
where it is computed, without waiting for it; only when slots are about to change hands is it put down to the units that
stood there. Of a deep model some layers are measured, spread evenly, in all their heads.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MOST_LAYERS = 8


def measured_layers(num_layers: int) -> frozenset[int]:
    """The layers of a model that are measured: all, or ``MOST_LAYERS`` of them, the first and the last among them."""
    count = min(num_layers, MOST_LAYERS)
    return frozenset(np.linspace(0, num_layers - 1, count).round().astype(int).tolist())


class AttentionLedger:
    """Of one reply."""

    def __init__(self, num_layers: int, slots: int, device: torch.device) -> None:
        self.layers = measured_layers(num_layers)
        self._paid = torch.zeros(slots, device=device)
        self._open = False
        self._identity = np.empty(0, np.int64)
        self._sum = np.empty(0, np.float64)

    def note(self, layer: int, query: Tensor, keys: Tensor, mask: Tensor) -> None:
        """One step in one layer: query [heads, D] and keys [kv_heads, S, D] rotated, mask additive, broadcastable to
        [kv_heads, groups, S]."""
        if layer not in self.layers:
            return
        kv_heads, width, dim = keys.shape
        scores = query.view(kv_heads, -1, dim) @ keys.transpose(1, 2) * dim**-0.5
        self._paid[:width] += torch.softmax((scores + mask).float(), -1).sum((0, 1))
        self._open = True

    def settle(self, identity: NDArray[np.int64], slots: NDArray[np.int64]) -> None:
        """Put down what was paid since the last time to the units [n] that stand in these slots."""
        if not self._open:
            return
        paid = self._paid.cpu().numpy().astype(np.float64)[slots]
        self._paid.zero_()
        self._open = False
        self._identity, rows = np.unique(np.concatenate([self._identity, identity]), return_inverse=True)
        total = np.zeros(len(self._identity))
        np.add.at(total, rows, np.concatenate([self._sum, paid]))
        self._sum = total

    def shares(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """(identity [n], share [n]) of all units that were paid anything; the shares sum to 1."""
        total = float(self._sum.sum())
        return self._identity, self._sum / total if total else self._sum

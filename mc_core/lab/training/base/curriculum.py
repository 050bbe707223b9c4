"""The curriculum that a base of a few million parameters learns recall by."""

from __future__ import annotations

from mc_core.lab.training.base.batches import Stage

CURRICULUM: tuple[Stage, ...] = (
    Stage(0.13, 128, (64, 64), 0.00, 0.00, (1, 3), (3, 5), block_mask=0.0, drill=1.0),
    Stage(0.11, 192, (64, 112), 0.20, 0.05, (1, 3), (3, 7), block_mask=0.6, drill=0.6),
    Stage(0.16, 256, (64, 144), 0.50, 0.05, (1, 4), (3, 7), drill=0.15),
    Stage(0.18, 384, (64, 160), 0.45, 0.05, (1, 5), (3, 7), wide_segments=0.5),
    Stage(0.12, 512, (96, 191), 0.38, 0.04, (1, 6), (3, 7), wide_segments=0.75),
    Stage(0.10, 512, (128, 191), 0.55, 0.00, (4, 10), (4, 7), block_mask=0.75, drill=0.3, wide_segments=0.75),
    Stage(0.20, 1056, (128, 191), 0.65, 0.01, (3, 12), (4, 7), block_mask=0.8, wide_segments=0.75),
)
"""Copying is taught on short, dense sequences first, then lengthened and diluted; the order matters more than the
amounts: three million tokens of facts among text taught nothing, half a million of facts and questions alone did. A
second dense stage tells many look-alikes apart: without it, recall among them stood at 0.7 for two million tokens.
"""

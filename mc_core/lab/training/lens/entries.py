"""The losses of LensNet's entry scores on labelled working contexts."""

from __future__ import annotations

import torch
from torch import Tensor

from mc_core.lab.training.lens.keys import Embed
from mc_core.lab.training.lens.labels import EntryBatch
from mc_core.lab.training.lens.lens_training import EntryWeights
from mc_core.lab.training.lens.losses import budget_balance, illegal_wish, preference, rank_error, utility_error
from mc_core.nets.lensnet import LensNet

MOST_NATS = 4.0
"""Labels beyond this count as this: more than certain is not needed, and a few great ones would outweigh the rest."""
MARGIN = 0.1
"""Labels that differ by less are no ground for a preference."""


def entry_losses(net: LensNet, embed: Embed, batch: EntryBatch, weights: EntryWeights) -> dict[str, Tensor]:
    """Each loss of a batch by name, and "entries", their weighted sum."""
    output = net(batch.view(embed))
    gain, harm = (label.clamp(-MOST_NATS, MOST_NATS) for label in (batch.gain, batch.harm))
    error = utility_error(output.gain, gain, batch.gain_known) + utility_error(output.harm, harm, batch.harm_known)
    rank = rank_error(output.gain, gain, batch.gain_known, MARGIN) + rank_error(
        output.harm, harm, batch.harm_known, MARGIN
    )
    free = batch.entry_mask & (batch.can_expand | batch.can_collapse)
    parts = {
        "utility": error,
        "rank": rank,
        "balance": budget_balance(output.score, batch.costs, free),
        "illegal": illegal_wish(output.score, batch.can_expand, batch.can_collapse, batch.entry_mask),
        "preference": _preferences(output.score, batch, gain, harm),
    }
    shares = {"utility": 1.0, **vars(weights)}
    return {**parts, "entries": torch.stack([shares[name] * loss for name, loss in parts.items()]).sum()}


def _preferences(score: Tensor, batch: EntryBatch, gain: Tensor, harm: Tensor) -> Tensor:
    """Each measured edit as a pair of contexts, with it and without it, that differ in the level of its entries."""
    scores, better, worse, difference = [], [], [], []
    for known, worth in ((batch.gain_known, gain), (batch.harm_known, harm)):
        chosen = known & (worth.abs() > MARGIN)
        # A block that is worth reading is better shown finer, by one level, whether it is now or not.
        finer = worth[chosen] > 0
        scores.append(score[chosen])
        better.append((~finer).long())
        worse.append(finer.long())
        difference.append(worth[chosen].abs())
    levels = torch.cat(better)[:, None], torch.cat(worse)[:, None]
    return preference(torch.cat(scores)[:, None], *levels, torch.cat(difference))

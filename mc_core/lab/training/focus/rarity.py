"""What excerpts are chosen by: how rare tokens are in a corpus, told from their embeddings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mc_core.lab.training.vocabulary import fit_vocabulary
from mc_core.nets.excerpt_gistnet import ExcerptGistNet
from mc_core.nets.lens_keys import whiten

FIT_STEPS = 400
MOST_DRAWN = 0.01
"""A token is drawn by the square root of its share, up to this: else the few commonest would be half of all."""


def fit_rarity(net: ExcerptGistNet, embeddings: Tensor, counts: Tensor, word: Tensor, seed: int) -> None:
    """Fit ``net`` to how rare tokens are, so that it changes no more: minus log of the share, in nats.

    embeddings [V, d]; counts [V] in the corpus; word [V] bool: what is none (control tokens, blanks) is the least rare,
    at 0. A word that the corpus has not is as rare as those like it: embeddings that a base was never trained on are
    alike, be they of words or of control tokens.
    """
    seen = (counts > 0) & word
    rarity = torch.where(seen, (counts.sum() / counts.clamp_min(1)).log(), 0.0).float()
    often = (-rarity / 2).exp().clamp_max(MOST_DRAWN) * (seen | ~word)
    embeddings, generator = embeddings.detach(), torch.Generator().manual_seed(seed)
    whiten(net.enter, embeddings, generator)
    net.leave.bias.fill_(float(rarity[seen].mean()))
    net.requires_grad_(True)

    def loss_of(rows: Tensor) -> Tensor:
        return F.smooth_l1_loss(net.rarity(embeddings[rows]), rarity[rows])

    fit_vocabulary(net.parameters(), often, FIT_STEPS, generator, loss_of)
    net.requires_grad_(False)

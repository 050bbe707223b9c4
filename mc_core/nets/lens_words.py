"""Word vectors: every token of a vocabulary as a unit vector, and how rare it is.

A question and a block are compared word by word, each word of the question with the nearest one of the block (late
interaction, Khattab & Zaharia 2020), so that "lure" finds "trap". A block needs no vectors of its own: its tokens have
theirs by id, so a history costs nothing but its ids.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mc_core.errors import ConfigError
from mc_core.nets.lens_keys import clean

FLOOR = 0.4
"""Cosine below which two words have nothing in common: most pairs of words lie between 0 and 0.3."""
AT_ONCE = 8192


def likeness(queries: Tensor, vectors: Tensor) -> Tensor:
    """How much unit vectors [m, D] and [n, D] have in common, 0 (less than ``FLOOR``) to 1 (the same) -> [m, n]."""
    return (queries @ vectors.T - FLOOR).clamp_min(0) / (1 - FLOOR)


class WordNet(nn.Module):
    """Token embeddings -> word vectors, and rarities: log of how many blocks there are to one that holds the word."""

    def __init__(self, dim: int, hidden: int, size: int) -> None:
        """dim: of the embeddings; hidden: units between; size: of a word vector."""
        super().__init__()
        self.enter = nn.Linear(dim, dim)
        self.hidden, self.leave = nn.Linear(dim, hidden), nn.Linear(hidden, size + 1)
        self.direct = nn.Linear(dim, size + 1, bias=False)
        self.table: Tensor | None = None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings [n, d] -> unit vectors [n, D] and rarities [n]."""
        return self.from_whitened(self.enter(clean(x[None], None)[0]))

    def from_whitened(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The same from what ``enter`` makes of embeddings."""
        found = self.leave(F.gelu(self.hidden(x))) + self.direct(x)
        return F.normalize(found[:, :-1], dim=-1), found[:, -1].clamp_min(0)

    @torch.no_grad()
    def learn_vocabulary(self, embeddings: Tensor, word: Tensor) -> None:
        """Keep vectors and rarities [V, D + 1] of a vocabulary's embeddings [V, d], float32: ``table``.

        word [V] bool: what is none (control tokens, blanks) is like nothing and weighs nothing.
        """
        found = map(self, torch.split(embeddings.float(), AT_ONCE))
        table = torch.cat([torch.cat([vectors, rarity[:, None]], dim=1) for vectors, rarity in found])
        self.table = table * word[:, None].to(table)

    def question(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """One tail's ids [t] -> their vectors [t, D], and weights [t]: the square of rarity, as in the lexical search.

        ConfigError before ``learn_vocabulary``.
        """
        if self.table is None:
            raise ConfigError("the word vectors of the vocabulary were not made: learn_vocabulary comes first")
        words = self.table[ids]
        return words[:, :-1], words[:, -1].square()

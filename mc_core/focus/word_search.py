"""Search of one growing history by word vectors: which blocks say what the words of a question mean?"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mc_core.errors import ConfigError
from mc_core.focus.lookahead import Found, best_of
from mc_core.focus.tuning import BESIDE, TOLD_WORDS
from mc_core.nets.lens_words import WordNet, likeness

BLOCKS_AT_ONCE = 2048


def best_in(matches: Tensor, blocks: Tensor) -> Tensor:
    """matches [V, m] of a vocabulary's words with m queries, blocks [n, K] ids -> each block's best match [n, m]."""
    parts = [
        matches.index_select(0, part.reshape(-1)).view(*part.shape, matches.shape[1]).amax(1)
        for part in torch.split(blocks, BLOCKS_AT_ONCE)
    ]
    return torch.cat(parts)


def summed(best: Tensor, weights: Tensor) -> Tensor:
    """best [n, m] of m queries in n neighbouring blocks, weights [m] or [m, Q] -> scores [n] or [n, Q].

    A query counts with its best word in a block, and for a share more with the best in it or its neighbours: what is
    said of a thing straddles borders.
    """
    near = torch.maximum(best, torch.cat([best[1:], best[-1:]]))
    near = torch.maximum(near, torch.cat([best[:1], best[:-1]]))
    return (best + BESIDE * near) @ weights


class WordSearch:
    """Ids of the blocks of one history (4 bytes a token), and the search among them."""

    def __init__(self, net: WordNet, block_size: int) -> None:
        """net: with its vocabulary's table."""
        self.net, self.block_size = net, block_size
        self._ids = torch.empty(0, block_size, dtype=torch.int32)
        self.num_blocks = 0
        self._asked: tuple[bytes, int, int] | None = None
        self._found: Found | None = None

    def append(self, first_block: int, ids: NDArray[np.int32]) -> None:
        """Take complete blocks ``ids`` [n, K]; ``first_block`` must be the number of blocks known so far."""
        if first_block != self.num_blocks:
            raise ConfigError(f"first_block must be {self.num_blocks}, the next block, got {first_block}")
        end = first_block + len(ids)
        if end > len(self._ids):
            grown = torch.empty(max(end, 2 * len(self._ids)), self.block_size, dtype=torch.int32)
            grown[: self.num_blocks] = self._ids[: self.num_blocks]
            self._ids = grown
        self._ids[first_block:end] = torch.from_numpy(np.ascontiguousarray(ids))
        self.num_blocks, self._asked = end, None

    def rewind(self, num_blocks: int) -> None:
        """Forget all blocks from ``num_blocks`` on."""
        self.num_blocks, self._asked = min(self.num_blocks, num_blocks), None

    @torch.inference_mode()
    def scores(self, question: NDArray[np.int32], end: int) -> Tensor:
        """Scores [end] of the first ``end`` blocks for a question's ids [t]."""
        table = self.net.table
        assert table is not None
        queries, weights = self.net.question(torch.from_numpy(question.astype(np.int64)).to(table.device))
        told = weights.topk(min(TOLD_WORDS, len(weights))).indices
        matches = likeness(queries[told], table[:, :-1]).T.contiguous()
        blocks = self._ids[: min(end, self.num_blocks)].to(table.device)
        return summed(best_in(matches, blocks), weights[told])

    def search(self, question: NDArray[np.int32], end: int, k: int) -> Found:
        """The k best of the first ``end`` blocks; a question's hops ask again, and are told the same."""
        asked = question.tobytes(), end, k
        if self._found is None or asked != self._asked:
            scores = self.scores(question, end)
            self._found, self._asked = best_of(torch.arange(len(scores), device=scores.device), scores, k), asked
        return self._found

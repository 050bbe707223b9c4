"""The learned lens, and its union with the lexical one."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mc_core.errors import ConfigError
from mc_core.focus.leads import Lead
from mc_core.focus.lens_lexical import LexicalLens
from mc_core.focus.lookahead import LookAhead
from mc_core.focus.relevance import RECENCY_WORTH, lift, recency, with_turn
from mc_core.focus.scores import Scores
from mc_core.focus.targets import apart, with_neighbours
from mc_core.focus.view import LensView
from mc_core.nets.lensnet import LensInput, LensNet

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

CANDIDATES_A_HIT = 4
"""Nodes looked up for each hit asked for: those next to a better hit are passed over."""
RANK_HALF = 8.0
"""Rank at which a target is worth half as much as the first, when lenses are fused."""


class LearnedLens:
    """LensNet on the entries, and its look-ahead over the lens keys of the whole tree."""

    def __init__(self, net: LensNet, block_size: int, look_ahead: int, neighbours: int) -> None:
        self.net, self.look_ahead, self.neighbours = net, look_ahead, neighbours
        self.search = LookAhead(fanout=block_size)

    def append(self, first_block: int, ids: NDArray[np.int32]) -> None:
        """The tree makes and keeps the keys; there is nothing to index here."""

    def rewind(self, num_blocks: int) -> None:
        self.search.rewind(num_blocks)

    @torch.inference_mode()
    def score(self, view: LensView) -> Scores:
        wc, tail = view.wc, view.tail_vectors()[None]
        entries = len(wc.levels)
        output = self.net(self._input(view, tail))
        end = view.turn_start // wc.block_size
        nodes, worth = self._look_ahead(view, tail, end)
        # One copy from the device: float64 holds every node number exactly.
        parts = [torch.tanh(output.gain[0]), torch.tanh(output.harm[0]), worth, nodes]
        host = torch.cat([part.double() for part in parts]).cpu().numpy()
        gain, harm = host[: 2 * entries].astype(np.float32).reshape(2, entries)
        found, blocks = np.split(host[2 * entries :], 2)
        targets, scores = self._targets(blocks.astype(np.int64), found.astype(np.float32), end)
        targets, scores = with_turn(view, targets, scores)
        wanted = lift(wc, targets, scores)
        return Scores(
            gain=np.where(wc.levels > 0, np.maximum(gain.clip(0), wanted), np.float32(0)),
            harm=np.maximum(harm.clip(0), np.maximum(wanted, RECENCY_WORTH * recency(wc))),
            targets=targets,
            target_scores=scores,
        )

    def _input(self, view: LensView, tail: Tensor) -> LensInput:
        wc, entries = view.wc, view.entry_vectors()[None]
        columns = np.stack([wc.levels.astype(np.int64), wc.ends() - wc.starts(), view.cursor - wc.ends()])
        levels, spans, distances = torch.from_numpy(columns).to(entries.device)[:, None]
        return LensInput(entries, levels, spans, distances, tail)

    def _look_ahead(self, view: LensView, tail: Tensor, end: int) -> tuple[Tensor, Tensor]:
        if not view.tree.config.lens_keys or not end:
            nothing = torch.empty(0, device=tail.device)
            return nothing, nothing
        queries = self.net.query_net(tail)[0]
        keys = view.tree.lens_keys(0, end)
        found = self.search.search(queries, keys, CANDIDATES_A_HIT * self.look_ahead)
        return found.nodes, found.standing()

    def _targets(self, blocks: Ints, scores: Floats, end: int) -> tuple[Ints, Floats]:
        chosen = apart(blocks, self.look_ahead, 1)
        hits = blocks[chosen]
        return with_neighbours(hits, hits, scores[chosen], self.neighbours, end)


class HybridLens:
    """Learned and lexical: their targets fused by rank, so that neither's scale of scores counts."""

    def __init__(self, learned: LearnedLens, lexical: LexicalLens) -> None:
        self.learned, self.lexical = learned, lexical

    def append(self, first_block: int, ids: NDArray[np.int32]) -> None:
        self.learned.append(first_block, ids)
        self.lexical.append(first_block, ids)

    def rewind(self, num_blocks: int) -> None:
        self.learned.rewind(num_blocks)
        self.lexical.rewind(num_blocks)

    def leads(self, view: LensView, blocks: Ints, ids: NDArray[np.int32]) -> list[Lead]:
        """As the lexical lens tells them, in all that either lens found."""
        return self.lexical.leads(view, blocks, ids)

    def score(self, view: LensView) -> Scores:
        first, second = self.learned.score(view), self.lexical.score(view)
        targets, worth = fuse(first, second)
        wanted = lift(view.wc, targets, worth)
        gain = np.maximum((first.gain + second.gain) / 2, wanted)
        return Scores(
            gain=np.where(view.wc.levels > 0, gain, np.float32(0)),
            harm=np.maximum(first.harm, second.harm),
            targets=targets,
            target_scores=worth,
        )


def fuse(first: Scores, second: Scores) -> tuple[Ints, Floats]:
    """Targets of both by reciprocal rank (Cormack et al. 2009), best first; the best is worth the better's best."""
    targets = np.concatenate([first.targets, second.targets])
    if not len(targets):
        return targets, np.empty(0, np.float32)
    ranks = np.concatenate([np.arange(len(first.targets)), np.arange(len(second.targets))])
    distinct, place = np.unique(targets, return_inverse=True)
    fused = np.zeros(len(distinct))
    np.add.at(fused, place, 1 / (1 + ranks / RANK_HALF))
    best = max(float(scores.max(initial=0.0)) for scores in (first.target_scores, second.target_scores))
    order = np.lexsort((distinct, -fused))
    return distinct[order], (fused[order] / fused.max() * best).astype(np.float32)


def check_net(kind: str, net: LensNet | None) -> LensNet:
    """The network that a learned lens needs -> ConfigError if it is not there or of another kind."""
    if net is None:
        raise ConfigError(f"lens must be lexical, recency or random without a trained LensNet, got {kind}")
    if kind in ("cross", "transformer") and net.config.kind != kind:
        raise ConfigError(f"lens must be the kind the LensNet was trained as ({net.config.kind}), got {kind}")
    return net

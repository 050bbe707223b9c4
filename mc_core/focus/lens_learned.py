"""The learned lens, and its union with the lexical one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mc_core.focus.leads import Lead
from mc_core.focus.lens import LensParts
from mc_core.focus.lens_lexical import LexicalLens, in_words, make_lexical
from mc_core.focus.lookahead import LookAhead, distinct, standing
from mc_core.focus.targets import apart, merged, with_neighbours
from mc_core.focus.tuning import (
    ENTRY_WORTH,
    FIRM,
    GIVES_WAY,
    LEAST_DISTINCT,
    RECENCY_WORTH,
    TAKES_OVER,
)
from mc_core.focus.view import Finding, LensView, Scores, lifted, recency, with_turn
from mc_core.focus.word_fusion import NOTHING, Meant, join, with_keys
from mc_core.focus.word_search import WordSearch
from mc_core.nets.lensnet import LensInput, LensNet

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

CANDIDATES_A_HIT, WORD_CANDIDATES_A_HIT = 4, 16
"""Nodes looked up for each hit asked for: those next to a better hit are passed over. By word vectors more, for a block
of which words say little may have its share of both."""


def make_learned(parts: LensParts) -> LearnedLens:
    assert parts.lensnet is not None
    return LearnedLens(parts.lensnet, parts.block_size, parts.look_ahead, parts.neighbours)


def make_hybrid(parts: LensParts) -> HybridLens:
    return HybridLens(make_learned(parts), make_lexical(parts))


@dataclass(frozen=True, eq=False)
class Asked:
    """What a network says: gain and harm of entries for their own sake [n], and what it found in all history.

    found: by lens keys; meant: by word vectors, None for a network without them.
    """

    gain: Floats
    harm: Floats
    found: Finding
    meant: Meant | None


class LearnedLens:
    """LensNet on the entries, and its look-ahead: over the lens keys of the whole tree, or by word vectors."""

    def __init__(self, net: LensNet, block_size: int, look_ahead: int, neighbours: int) -> None:
        self.net, self.look_ahead, self.neighbours = net, look_ahead, neighbours
        self.search = LookAhead(fanout=block_size)
        self.words = WordSearch(net.word_net, block_size) if net.word_net is not None else None

    def join(self, meant: Meant, words: Finding, end: int) -> tuple[Ints, Floats]:
        """Both ways of searching as one, in as many places as are looked for, with their neighbours."""
        return join(meant, words, end, self.look_ahead, self.look_ahead * (2 * self.neighbours + 1))

    def hits(self, meant: Meant) -> Ints:
        """Blocks found for what they say, not for what stands beside them."""
        return meant.blocks[apart(meant.blocks, self.look_ahead, 1)]

    def append(self, first_block: int, ids: NDArray[np.int32]) -> None:
        """Lens keys are made and kept by the tree; a search by words takes the ids."""
        if self.words is not None:
            self.words.append(first_block, ids)

    def rewind(self, num_blocks: int) -> None:
        self.search.rewind(num_blocks)
        if self.words is not None:
            self.words.rewind(num_blocks)

    def score(self, view: LensView) -> Scores:
        asked = self.ask(view)
        found, hits = (asked.found.targets, asked.found.worth), asked.found.hits
        if asked.meant is not None:
            end = view.turn_start // view.wc.block_size
            found = with_keys(asked.found, self.join(asked.meant, NOTHING, end))
            hits = np.union1d(hits, self.hits(asked.meant))
        targets, scores = with_turn(view, *found)
        harm = np.maximum(asked.harm, RECENCY_WORTH * recency(view.wc))
        return lifted(view.wc, asked.gain, harm, targets, scores, hits)

    @torch.inference_mode()
    def ask(self, view: LensView) -> Asked:
        """What the network itself says."""
        tail = view.question_vectors()[None]
        entries = len(view.wc.levels)
        output = self.net(self._input(view, tail))
        end = view.turn_start // view.wc.block_size
        nodes, deviations = self._look_ahead(view, tail, end)
        # One copy from the device: float64 holds every node number exactly.
        parts = [torch.tanh(output.gain[0]), torch.tanh(output.harm[0]), deviations, nodes]
        host = torch.cat([part.double() for part in parts]).cpu().numpy()
        gain, harm = ENTRY_WORTH * host[: 2 * entries].astype(np.float32).reshape(2, entries).clip(0)
        above, nodes_found = np.split(host[2 * entries :], 2)
        others = ~view.own(nodes_found.astype(np.int64))
        blocks, above = nodes_found[others].astype(np.int64), above[others].astype(np.float32)
        hits = blocks[apart(blocks, self.look_ahead, 1)]
        found = Finding(*self._targets(blocks, standing(above), end), distinct(blocks, above), hits)
        return Asked(gain, harm, found, self._meant(view, end))

    def _meant(self, view: LensView, end: int) -> Meant | None:
        if self.words is None:
            return None
        found = self.words.search(view.question, end, WORD_CANDIDATES_A_HIT * self.look_ahead)
        blocks, above = found.nodes.cpu().numpy(), found.deviations().cpu().numpy()
        others = ~view.own(blocks)
        return Meant(blocks[others], above[others])

    def _input(self, view: LensView, tail: Tensor) -> LensInput:
        wc, entries = view.wc, view.entry_vectors()[None]
        columns = np.stack([wc.levels.astype(np.int64), wc.ends() - wc.starts(), view.cursor - wc.ends()])
        levels, spans, distances = torch.from_numpy(columns).to(entries.device)[:, None]
        return LensInput(entries, levels, spans, distances, tail)

    def _look_ahead(self, view: LensView, tail: Tensor, end: int) -> tuple[Tensor, Tensor]:
        if self.net.query_net is None or not view.tree.config.lens_keys or not end:
            nothing = torch.empty(0, device=tail.device)
            return nothing, nothing
        queries = self.net.query_net(tail)[0]
        keys = view.tree.lens_keys(0, end)
        found = self.search.search(queries, keys, CANDIDATES_A_HIT * self.look_ahead)
        return found.nodes, found.deviations()

    def _targets(self, blocks: Ints, scores: Floats, end: int) -> tuple[Ints, Floats]:
        chosen = apart(blocks, self.look_ahead, 1)
        hits = blocks[chosen]
        return with_neighbours(hits, hits, scores[chosen], self.neighbours, end)


class HybridLens:
    """Learned and lexical: the targets of both, the learned ones giving way where words alone are sure."""

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
        asked, lexical = self.learned.ask(view), self.lexical.score(view)
        others, end = ~view.own(lexical.targets), view.turn_start // view.wc.block_size
        assert lexical.hits is not None
        hits = np.union1d(asked.found.hits, lexical.hits)
        if asked.meant is None:
            words = in_words(lexical.targets[others], lexical.target_scores[others], end)
            targets, worth = with_turn(view, *fuse(asked.found, words, end))
        else:
            joined = with_keys(asked.found, self.learned.join(asked.meant, self.lexical.found(view), end))
            leads = [(lead.targets, lead.worth) for lead in view.leads]
            targets, worth = with_turn(view, *merged([joined, *leads]))
            hits = np.union1d(hits, self.learned.hits(asked.meant))
        return lifted(view.wc, asked.gain, np.maximum(asked.harm, lexical.harm), targets, worth, hits)


def fuse(learned: Finding, words: Finding, end: int) -> tuple[Ints, Floats]:
    """Targets of both with the better of their worths, best first; blocks from ``end`` on are the turn's own.

    Not by rank: a question that names its key has all of its evidence in words (worth near 1, at several places if
    there are several values), and look-alikes of the learned lens would take their places. A paraphrase has about half
    as much, and what means the same stands out from all that the learned lens finds.
    """
    if learned.certainty < LEAST_DISTINCT:
        return words.targets, words.worth
    sure = words.certainty**GIVES_WAY
    yields = np.float32(1 - learned.certainty**TAKES_OVER * (1 - sure))
    in_text = words.worth * np.where(words.targets < end, yields, 1)
    best = np.abs(learned.targets - learned.targets[0]) <= 2
    firm = np.where(best, np.float32(FIRM * learned.certainty) * learned.worth / learned.worth[0], 0)
    left = np.maximum(learned.worth * np.float32(1 - sure), firm)
    kept = left > 0
    return merged([(words.targets, in_text), (learned.targets[kept], left[kept])])

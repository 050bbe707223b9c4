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
from mc_core.focus.targets import apart, merged, with_neighbours
from mc_core.focus.view import LensView
from mc_core.nets.lensnet import LensInput, LensNet

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

CANDIDATES_A_HIT = 4
"""Nodes looked up for each hit asked for: those next to a better hit are passed over."""
ENTRY_WORTH = 0.25
"""Most that an entry's own score counts. What the question asks for comes first: these scores tell which of the rest
to open and which to give up, and a network fitted to differences of hundredths of a nat has no scale to trust."""
GIVES_WAY = 8
"""Power of the lexical lens's certainty by which learned targets lose worth: three quarters of the evidence take off a
tenth, full evidence all. A place that a learned look-alike took is not free again for what the next hop finds."""

TAKES_OVER = 3
"""Power of the learned lens's certainty by which the lexical targets lose worth, as far as words are not sure: the few
places that a refocus opens are better spent on further finds than on words that stand everywhere."""

LEAST_CERTAIN = 0.3
"""What the best learned target must be worth, or none is taken: the best look-alike of what is not there stands as
high, and its place would be taken from what the hops find. In eight thousand tokens of which half are planted
statements, paraphrases that are there stand no higher than this."""

FIRM, FIRM_HITS, SHORT = 0.9, 2, 256
"""Share of their worth that the best learned hits keep in a history of up to ``SHORT`` blocks, however sure words are,
and the less the longer it is: among few blocks full evidence in words is often an accident. Not where the two lenses
agree on a place: then words are right, and further places are better left to the hops."""
AGREED = 0.8
"""Share of the best evidence that a place of the lexical lens must have to be one that the learned lens may confirm."""


class LearnedLens:
    """LensNet on the entries, and its look-ahead over the lens keys of the whole tree."""

    def __init__(self, net: LensNet, block_size: int, look_ahead: int, neighbours: int) -> None:
        self.net, self.look_ahead, self.neighbours = net, look_ahead, neighbours
        self.search = LookAhead(fanout=block_size)

    def append(self, first_block: int, ids: NDArray[np.int32]) -> None:
        """The tree makes and keeps the keys; there is nothing to index here."""

    def rewind(self, num_blocks: int) -> None:
        self.search.rewind(num_blocks)

    def score(self, view: LensView) -> Scores:
        asked = self.ask(view)
        targets, scores = with_turn(view, asked.targets, asked.target_scores)
        wanted = lift(view.wc, targets, scores)
        harm = np.maximum(asked.harm, RECENCY_WORTH * recency(view.wc))
        return _opening(view, asked.gain, np.maximum(harm, wanted), targets, scores)

    @torch.inference_mode()
    def ask(self, view: LensView) -> Scores:
        """What the network itself says: scores of the entries, and targets that are not lifted onto them."""
        tail = view.tail_vectors()[None]
        entries = len(view.wc.levels)
        output = self.net(self._input(view, tail))
        end = view.turn_start // view.wc.block_size
        nodes, worth = self._look_ahead(view, tail, end)
        # One copy from the device: float64 holds every node number exactly.
        parts = [torch.tanh(output.gain[0]), torch.tanh(output.harm[0]), worth, nodes]
        host = torch.cat([part.double() for part in parts]).cpu().numpy()
        gain, harm = ENTRY_WORTH * host[: 2 * entries].astype(np.float32).reshape(2, entries).clip(0)
        found, blocks = np.split(host[2 * entries :], 2)
        return Scores(gain, harm, *self._targets(blocks.astype(np.int64), found.astype(np.float32), end))

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
        learned, lexical = self.learned.ask(view), self.lexical.score(view)
        targets, worth = fuse(learned, lexical, view.turn_start // view.wc.block_size)
        harm = np.maximum(np.maximum(learned.harm, lexical.harm), lift(view.wc, targets, worth))
        return _opening(view, learned.gain, harm, targets, worth)


def fuse(learned: Scores, lexical: Scores, end: int) -> tuple[Ints, Floats]:
    """Targets of both with the better of their scores, best first; blocks from ``end`` on are the turn's own.

    Not by rank: a question that names its key has all of its evidence in words (scores near 1, at several places if
    there are several values), and look-alikes of the learned lens would take their places. A paraphrase has about half
    as much, and the learned targets stand above that.
    """
    certain = float(learned.target_scores.max(initial=0.0))
    if certain < LEAST_CERTAIN:
        return lexical.targets, lexical.target_scores
    past = lexical.targets < end
    sure = float(lexical.target_scores[past].max(initial=0.0)) ** GIVES_WAY
    left = learned.target_scores * _shares(learned.targets, lexical, past, sure, end)
    words = lexical.target_scores * np.where(past, np.float32(1 - certain**TAKES_OVER * (1 - sure)), np.float32(1))
    kept = left > 0
    return merged([(lexical.targets, words), (learned.targets[kept], left[kept])])


def _shares(targets: Ints, lexical: Scores, past: NDArray[np.bool_], sure: float, end: int) -> Floats:
    """Share of its worth that each learned target (best first) keeps beside words that are ``sure`` [m]."""
    shares = np.full(len(targets), 1 - sure, np.float32)
    hits = targets[apart(targets, FIRM_HITS, 2)]
    words = lexical.target_scores[past]
    strong = lexical.targets[past][words >= AGREED * words.max(initial=0.0)]
    if not (np.abs(strong[:, None] - hits) <= 1).any():
        of_hits = (np.abs(targets[:, None] - hits) <= 2).any(1)
        shares[of_hits] = np.maximum(shares[of_hits], np.float32(FIRM * min(1.0, SHORT / max(1, end))))
    return shares


def _opening(view: LensView, gain: Floats, harm: Floats, targets: Ints, scores: Floats) -> Scores:
    """Entries are worth opening for their own sake, or for the targets that they cover."""
    wanted = np.maximum(gain, lift(view.wc, targets, scores))
    return Scores(np.where(view.wc.levels > 0, wanted, np.float32(0)), harm, targets, scores)


def check_net(kind: str, net: LensNet | None) -> LensNet:
    """The network that a learned lens needs -> ConfigError if it is not there or of another kind."""
    if net is None:
        raise ConfigError(f"lens must be lexical, recency or random without a trained LensNet, got {kind}")
    if kind in ("cross", "transformer") and net.config.kind != kind:
        raise ConfigError(f"lens must be the kind the LensNet was trained as ({net.config.kind}), got {kind}")
    return net

"""Recall of the look-ahead: which facts of a long history would be opened for a question, by lens."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from mc_core.focus.lens_learned import CANDIDATES_A_HIT, Asked, fuse
from mc_core.focus.lens_lexical import LONG_VALUE
from mc_core.focus.lexical import FULL_EVIDENCE, LexicalIndex
from mc_core.focus.lookahead import LookAhead, distinct, standing
from mc_core.focus.scores import Scores
from mc_core.focus.targets import apart, with_neighbours
from mc_core.lab.data.arrays import Ints
from mc_core.lab.training.haystack import Haystack
from mc_core.lab.training.lens.history import History, make_history
from mc_core.lab.training.lens.keys import KeyModel
from mc_core.lab.training.lens.samples import random_blocks
from mc_core.models.words import Words

PLACES, NEIGHBOURS = 8, 1
OPENED = PLACES * (2 * NEIGHBOURS + 1)
"""Blocks that count as opened: as many as the best places have, neighbours included."""
AT_ONCE = 1024
LENSES = ("lexical", "learned", "hybrid")


def recall_figures(
    rng: Generator,
    model: KeyModel,
    maker: Haystack,
    tasks: Sequence[str],
    blocks: int,
    histories: int,
    block_size: int,
    words: Words | None = None,
) -> dict[str, Any]:
    """For each lens and task: share of gold statements found and opened whole, over ``histories`` of ``blocks`` blocks.

    found: a block of it is among the first ``OPENED`` targets; whole: all of them are. "place" (learned): one of the
    best ``PLACES`` hits themselves holds a part of it.
    """
    counts: dict[str, dict[str, list[list[bool]]]] = {lens: defaultdict(list) for lens in LENSES}
    text = random_blocks(rng, maker, blocks, block_size)
    known = _keys(model, text)
    for _ in range(histories):
        history = make_history(rng, maker, text, tasks)
        keys = _keys_of(model, history, text, known)
        index = LexicalIndex(block_size, words)
        index.append(0, history.blocks.astype(np.int32))
        for question in history.questions:
            learned, places = learned_targets(model, question.tail, keys)
            lexical = lexical_targets(index, question.tail)
            fused = Scores(lexical.gain, lexical.harm, *fuse(learned, lexical, index.num_blocks))
            for lens, scores in zip(LENSES, (lexical, learned.scores, fused), strict=True):
                opened = set(scores.targets[:OPENED].tolist())
                hits = set(places.tolist()) if lens == "learned" else opened
                counts[lens][question.task] += [
                    [bool(opened & set(gold)), opened >= set(gold), bool(hits & set(gold))] for gold in question.gold
                ]
    return {lens: {task: _shares(lens, rows) for task, rows in by_task.items()} for lens, by_task in counts.items()}


def _shares(lens: str, rows: list[list[bool]]) -> dict[str, float]:
    found, whole, place = np.array(rows, float).mean(0).round(4).tolist()
    extra = {"place": place} if lens == "learned" else {}
    return {"found": found, "whole": whole, **extra, "facts": len(rows)}


@torch.no_grad()
def learned_targets(model: KeyModel, tail: Ints, keys: Tensor) -> tuple[Asked, Ints]:
    """What the learned lens would open, and its best places themselves; keys [n, S, D] of the whole history."""
    ids = torch.from_numpy(tail)[None].to(model.device)
    queries = model.queries(ids, torch.ones_like(ids, dtype=torch.bool))[0]
    found = LookAhead().search(queries, keys, CANDIDATES_A_HIT * PLACES)
    nodes, above = found.nodes.cpu().numpy(), found.deviations().cpu().numpy()
    chosen = apart(nodes, PLACES, 1)
    targets, scores = with_neighbours(nodes[chosen], nodes[chosen], standing(above)[chosen], NEIGHBOURS, len(keys))
    return Asked(_scores(targets, scores), distinct(nodes, above)), nodes[chosen]


def lexical_targets(index: LexicalIndex, tail: Ints) -> Scores:
    """What the lexical lens would open."""
    found = index.evidence(tail.astype(np.int32))
    full = max(FULL_EVIDENCE * found.unit, float(found.best.max(initial=0.0)))
    further = max(1, LONG_VALUE // index.block_size - 1)
    targets, worth = found.targets(PLACES, NEIGHBOURS, index.num_blocks, further)
    return _scores(targets, worth / np.float32(full))


def _scores(targets: Ints, worth: NDArray[np.float32]) -> Scores:
    nothing = np.empty(0, np.float32)
    return Scores(nothing, nothing, targets, worth.astype(np.float32))


@torch.no_grad()
def _keys(model: KeyModel, blocks: Ints) -> Tensor:
    """Keys of blocks [n, K] in the precision that a session keeps them in."""
    parts = [
        model.keys(torch.from_numpy(blocks[at : at + AT_ONCE].astype(np.int64)).to(model.device)).half()
        for at in range(0, len(blocks), AT_ONCE)
    ]
    return torch.cat(parts)


def _keys_of(model: KeyModel, history: History, text: Ints, known: Tensor) -> Tensor:
    """Keys of a history's blocks; those of the text that it was made of are known."""
    rows = np.empty(len(history.blocks), np.int64)
    at = 0
    new: list[int] = []
    for row, block in enumerate(history.blocks):
        if at < len(text) and np.array_equal(block, text[at]):
            rows[row] = at
            at += 1
        else:
            rows[row] = len(text) + len(new)
            new.append(row)
    every = torch.cat([known, _keys(model, history.blocks[new])]) if new else known
    return every[torch.from_numpy(rows).to(every.device)]

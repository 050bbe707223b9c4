"""Would a stock base's own attention rank what its lens finds better than the lens does?

The first places of ``hybrid`` are ranked anew by what the question's tokens pay them in some layers or heads, less
what an empty question pays (in-context re-ranking, Chen et al. 2024). A place, a hit with half of both neighbours, is
read by itself behind the template's header, then the question behind all of them. Layers, heads and fusion are chosen
on the tuning questions and told on the held-out ones. What was asked is kept, a file each, so that a run that was
stopped goes on.

    python -m bench.attention_lens models/smollm2-135m-instruct --data CORPUS --kept FOLDER
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mc_core.bundle.bundle import Bundle, load_bundle
from mc_core.focus.focus_config import FocusConfig
from mc_core.focus.targets import apart
from mc_core.lab.data.arrays import Ids, Ints, Range
from mc_core.lab.data.corpus import held_out_documents
from mc_core.lab.evaluation.answers import histories_for
from mc_core.lab.evaluation.attention_scores import BlockReader
from mc_core.lab.evaluation.prompt import Prompt
from mc_core.lab.evaluation.real_text import Reader
from mc_core.lab.evaluation.statistics import bootstrap
from mc_core.lab.tasks.filler import Filler
from mc_core.lab.tasks.history import blocks_of
from mc_core.lab.tasks.plant import PlantPlan
from mc_core.lab.tasks.real_text.documents import read_texts
from mc_core.lab.tasks.real_text.histories import real_histories
from mc_core.lab.tasks.real_text.questions import load_questions
from server.commands.lab.eval_prompt import prompt_of

SPLITS = {"tuning": ("plain_tuning", "paraphrase"), "held_out": ("plain", "paraphrase")}
LENGTH, TRIALS = 32_768, {"plain_tuning": 60, "plain": 60, "paraphrase": 40}
EMPTY = "N/A"
PARTS = ("words", "closing")
OPENED = (1, 2, 4)
FUSED = tuple(itertools.product((1, 5, 20), (0.25, 0.5, 1.0, 2.0)))
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Row:
    """places: best first by the lens [C]; gold: blocks of the evidence. words, closing: what the question's words, and
    the tokens behind them, pay each place less what an empty question pays [layers, heads, C]."""

    suite: str
    places: Ints
    gold: Ints
    words: Floats
    closing: Floats
    seconds: float

    def opens(self, order: Ints, count: int) -> bool:
        """Whether the first places with their neighbours hold all of the evidence."""
        return bool(np.isin(self.gold, np.concatenate([order[:count] + step for step in (-1, 0, 1)])).all())

    def ranked(self, scores: Floats) -> Ints:
        """Places by their scores [C], equal ones in the lens's order."""
        return self.places[np.argsort(-scores, kind="stable")]


Scores = Callable[[Row], Floats]
Rank = Callable[[Row], Ints]


class Asker:
    """Asks the lens, and the base's first layers about what it found."""

    def __init__(self, bundle: Bundle, layers: int, places: int) -> None:
        self.bundle, self.places, self.prompt = bundle, places, prompt_of(bundle)
        own = FocusConfig(**bundle.focus)
        self.focus = FocusConfig(**{**bundle.focus, "lens": "hybrid", "look_ahead": max(places, own.look_ahead)})
        one, other = self.prompt("x")[0], self.prompt("y")[0]
        self._head = int(np.flatnonzero(one != other)[0])
        self._behind = len(one) - self._head - 1
        self._suffix = self.prompt("x")[1]
        header = self.prompt.alone("x")[0][: -self._behind - 1]
        self._reader = BlockReader(bundle.decoder, header.astype(np.int32), layers)

    def read(self, ids: Ids) -> None:
        """Take a history."""
        self._history = Reader(self.bundle, self.focus, ids)

    @torch.inference_mode()
    def ask(self, suite: str, question: str, spans: Sequence[Range]) -> Row:
        """The session is afterwards as before."""
        session, size = self._history.session, self.focus.block_size
        start, prompt = session.tokens, self.prompt(question)[0]
        session.append(prompt)
        # The last whole block of the history may not have a neighbour behind it.
        last = start // size - 1
        targets = session.propose(prompt).scores.targets
        targets = targets[targets <= last]
        places = targets[apart(targets, self.places, 1)]
        before, own, after = (session.tree.block_ids(np.clip(places + step, 0, last)) for step in (-1, 0, 1))
        session.rewind(start)
        session.wc = self._history.context.copy()
        began = time.perf_counter()
        blocks = np.concatenate([before[:, size // 2 :], own, after[:, : size // 2]], 1)
        kept = self._reader.read(blocks)
        paid, nothing = (self._parts(self._reader.ask(self._turn(text), kept, 2 * size)) for text in (question, EMPTY))
        words, closing = (calibrated(one - none) for one, none in zip(paid, nothing, strict=True))
        seconds = time.perf_counter() - began
        return Row(suite, places, blocks_of(list(spans), size), words, closing, seconds)

    def _turn(self, question: str) -> Ids:
        return np.concatenate([self._suffix, self.prompt(question)[0]]).astype(np.int32)

    def _parts(self, paid: Floats) -> tuple[Floats, Floats]:
        """paid [layers, heads, T, C, S] -> the means over the question's words, and over what follows them."""
        first = len(self._suffix) + self._head
        return paid[:, :, first : -self._behind].mean(2), paid[:, :, -self._behind :].mean(2)


def calibrated(paid: Floats) -> Floats:
    """Of tokens [layers, heads, C, S] to places [layers, heads, C], without tokens that an empty question pays so much
    more that they would decide alone: two deviations below their place's mean."""
    least = paid.mean(-1, keepdims=True) - 2 * paid.std(-1, keepdims=True)
    summed: Floats = np.where(paid > least, paid, 0).sum(-1)
    return summed


def asked(split: str, data: Path, prompt: Prompt, bundle: Bundle) -> Iterator[tuple[str, Ids, list[Any]]]:
    """(name, history, [(suite, question, spans of its evidence)])."""
    held, questions = split == "held_out", load_questions(split)
    for real in real_histories(questions, read_texts(data, questions, held), bundle.tokenizer):
        told = zip(real.questions, real.spans, strict=True)
        yield real.name, real.ids, [("real", question.question, spans) for question, spans in told]
    # No text around statements is in both splits.
    filler = Filler.of_documents(held_out_documents(data)[held::2], bundle.tokenizer)
    plan = PlantPlan(LENGTH, SPLITS[split], TRIALS, held_out=held)
    for number, history in enumerate(histories_for([plan], bundle.tokenizer, filler, 11 + held)):
        planted = [(q.suite, q.asked.question, [history.spans[i] for i in q.gold]) for q in history.questions]
        yield f"planted {number}", history.ids, planted


def gathered(split: str, given: argparse.Namespace, asker: Asker) -> list[Row]:
    """All rows of a split; those that are kept are not asked again."""
    rows = []
    for name, ids, questions in asked(split, given.data, asker.prompt, asker.bundle):
        chosen = range(0, len(questions), given.every)
        what = f"{split} {name}, {given.places} places, {given.layers} layers"
        files = [given.kept / f"{what} {i}.npz" for i in chosen]
        if not all(file.exists() for file in files):
            asker.read(ids)
        for file, i in zip(files, chosen, strict=True):
            if not file.exists():
                part = file.with_suffix(".part.npz")
                np.savez(part, **vars(asker.ask(*questions[i])))
                part.rename(file)
            with np.load(file) as kept:
                rows.append(Row(**{key: kept[key][()] for key in kept.files}))
    return rows


def by_band(part: str, low: int, high: int) -> Scores:
    return lambda row: getattr(row, part)[low:high].sum((0, 1))


def by_heads(part: str, heads: Ints, scale: Floats) -> Scores:
    """heads [n, 2] as (layer, head); scale [n] of what each pays."""
    return lambda row: (getattr(row, part)[heads[:, 0], heads[:, 1]] / scale[:, None]).sum(0)


def alone(scores: Scores) -> Rank:
    return lambda row: row.ranked(scores(row))


def fused(scores: Scores, k: float, weight: float) -> Rank:
    """By both ranks (Cormack et al. 2009): 1 / (k + rank) of the lens, and ``weight`` times that of attention."""

    def rank(row: Row) -> Ints:
        mine = np.argsort(np.argsort(-scores(row), kind="stable"))
        return row.ranked(1 / (k + np.arange(len(mine))) + weight / (k + mine))

    return rank


def figures(rows: Sequence[Row], rank: Rank) -> NDArray[np.float64]:
    """Of each question: whether so many places open its evidence; 1 / places that this takes [n, OPENED + 1]."""
    found = []
    for row in rows:
        order = rank(row)
        needed = [1 / count for count in range(1, len(order) + 1) if row.opens(order, count)]
        found.append([*(row.opens(order, count) for count in OPENED), max(needed, default=0.0)])
    return np.array(found, float)


def worth(rows: Sequence[Row], rank: Rank) -> float:
    return float(figures(rows, rank)[:, -1].mean())


def bands(rows: Sequence[Row]) -> dict[str, Scores]:
    layers = range(0, len(rows[0].words) + 1, 2)
    found = itertools.product(PARTS, itertools.combinations(layers, 2))
    return {f"{part}, layers {low} to {high}": by_band(part, low, high) for part, (low, high) in found}


def heads(rows: Sequence[Row]) -> dict[str, Scores]:
    """The 4, 8, 16 and 32 that rank best, each by itself, on these rows."""
    found: dict[str, Scores] = {}
    every = np.argwhere(np.ones(rows[0].words.shape[:2], bool))
    for part in PARTS:
        single = [worth(rows, alone(by_heads(part, each[None], np.ones(1, np.float32)))) for each in every]
        for count in (4, 8, 16, 32):
            best = every[np.argsort(-np.array(single), kind="stable")[:count]]
            scale = np.mean([np.abs(getattr(row, part)[best[:, 0], best[:, 1]]).mean(1) for row in rows], 0)
            found[f"{part}, {count} heads"] = by_heads(part, best, scale)
    return found


def chosen(rows: Sequence[Row]) -> dict[str, Rank]:
    """What ranks best on some questions, alone and fused with the lens, beside the lens."""
    found: dict[str, Rank] = {"hybrid": lambda row: row.places}
    for family in (bands(rows), heads(rows)):
        name = max(family, key=lambda each: worth(rows, alone(family[each])))
        k, weight = max(FUSED, key=lambda pair: worth(rows, fused(family[name], *pair)))
        found |= {name: alone(family[name]), f"{name}, fused ({k}, {weight})": fused(family[name], k, weight)}
    return found


def main() -> None:
    """Prints a line of JSON a method and suite: shares on held-out questions, and differences to the lens."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--kept", type=Path, required=True, help="folder for what was asked")
    parser.add_argument("--every", type=int, default=1, help="ask every so-manyth question alone")
    parser.add_argument("--layers", type=int, default=18)
    parser.add_argument("--places", type=int, default=5)
    given = parser.parse_args()
    given.kept.mkdir(parents=True, exist_ok=True)
    asker = Asker(load_bundle(given.bundle, "cpu", torch.int8), given.layers, given.places)
    tuning, held = (gathered(split, given, asker) for split in SPLITS)
    ranks, base = chosen(tuning), figures(held, lambda row: row.places)
    suites = np.array([str(row.suite) for row in held])
    for name, suite in itertools.product(ranks, ("all", *np.unique(suites))):
        inside = np.full(len(held), True) if suite == "all" else suites == suite
        shown = figures([row for row, one in zip(held, inside, strict=True) if one], ranks[name])
        less = [bootstrap(shown[:, i] - base[inside, i]).rounded(3) for i in range(shown.shape[1])]
        columns = [*(f"opened by {count}" for count in OPENED), "1 / places"]
        told = {column: [round(float(shown[:, i].mean()), 3), less[i]] for i, column in enumerate(columns)}
        print(json.dumps({"by": name, "suite": suite, "tuning": len(tuning), **told}))
    print(json.dumps({"seconds a question": round(float(np.mean([row.seconds for row in held])), 3)}))


if __name__ == "__main__":
    main()

"""Does the attention that a question pays to gists tell which block should be opened?

A stock base reads the gists of a whole history once: ``excerpt`` (copies of the four rarest neighbours) or plain means
of eight, in stretches of some 64 blocks side by side, each behind the template's header. Then a question follows all of
them. What its words, or the tokens behind them, pay a gist's best vector, less what an empty question pays, is its
block's score. Scores of a third of the layers, or of eight heads, rank the blocks, alone or beside a lens. All is
chosen on the tuning questions and told on the held-out ones, those of ``attention_lens``. What was asked is kept, a
file each, so that a run that was stopped goes on.

    python -m bench.gist_attention models/smollm2-135m-instruct --data CORPUS --kept FOLDER
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.attention_lens import EMPTY, PARTS, SPLITS, Asker, asked
from bench.common import report
from mc_core.bundle.bundle import Bundle, load_bundle
from mc_core.focus.lens_learned import HybridLens
from mc_core.focus.targets import apart
from mc_core.lab.data.arrays import Ids, Ints, Range
from mc_core.lab.data.corpus import corpus_files, read_documents
from mc_core.lab.evaluation.attention_scores import BlockReader
from mc_core.lab.evaluation.statistics import bootstrap
from mc_core.lab.tasks.history import blocks_of
from mc_core.lab.training.focus.rarity import fit_rarity
from mc_core.nets.excerpt_gistnet import ExcerptGistNet

LENSES = ("lexical", "hybrid")
ALL_BLOCKS = "BM25 of all blocks"
"""What the lexical lens goes by. The lens itself names no place that is worth much less than its best."""
ORDERS = (ALL_BLOCKS, *LENSES)
PLACES = (1, 5, 20)
VECTORS, STRETCH = 4, 64
BANDS = ("early", "middle", "late")
HEADS = 8
SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
"""Of a standard deviation of attention, beside a lens's worth of 0 to 1."""
COUNTED, CHARACTERS = 400, 4_000
"""Documents of each file of the corpus, and characters of each, that tell how rare tokens are."""
Floats = NDArray[np.float32]


@dataclass(eq=False)
class Gists:
    """make: embeddings [N, K, d] -> gists [N, m, d]."""

    reader: BlockReader
    make: Callable[[Tensor], Tensor]

    @torch.inference_mode()
    def read(self, blocks: Ids) -> None:
        self._count = len(blocks)
        stretches = -(-self._count // STRETCH)
        self._size = -(-self._count // stretches)
        gists = self.make(self.reader.decoder.embed(torch.from_numpy(blocks.astype(np.int64))))
        # Equal stretches: the last is filled up with its last block, which is not scored.
        gists = torch.cat([gists, gists[-1:].expand(stretches * self._size - self._count, -1, -1)])
        self._kept = self.reader.read(gists.reshape(stretches, -1, gists.shape[-1]))

    def ask(self, turn: Ids) -> Floats:
        """In shares of what each vector would get if all got the same."""
        paid = self.reader.ask(turn, self._kept, self._size * VECTORS)
        paid = paid.reshape(*paid.shape[:3], -1, VECTORS)[:, :, :, : self._count]
        return paid * np.float32(self._count * VECTORS)


def means(x: Tensor) -> Tensor:
    return x.unflatten(1, (VECTORS, -1)).mean(2)


def excerpts(bundle: Bundle, data: Path) -> Callable[[Tensor], Tensor]:
    """A GistNet that is fitted, not trained: to a sample of the corpus that is not held out."""
    size, dim = bundle.decoder.config.vocab_size, bundle.decoder.config.hidden_size
    counts = np.zeros(size, np.int64)
    for file in corpus_files(data):
        for document in itertools.islice(read_documents(file), COUNTED):
            if not document.held_out:
                ids = bundle.tokenizer.encode("\n".join(document.parts)[:CHARACTERS])
                counts += np.bincount(ids, minlength=size)
    torch.manual_seed(0)
    net = ExcerptGistNet(dim, bundle.block_size, VECTORS)
    word = torch.from_numpy(bundle.words.fold >= 0)
    fit_rarity(net, bundle.decoder.embed(torch.arange(size)).detach(), torch.from_numpy(counts), word, 0)
    return lambda x: net(x).unflatten(1, (VECTORS, dim))


def sources(bundle: Bundle, data: Path, reader: BlockReader, names: Sequence[str]) -> dict[str, Gists]:
    excerpt = excerpts(bundle, data) if "excerpt" in names else means
    known = {"excerpt": Gists(reader, excerpt), "means": Gists(reader, means)}
    return {name: known[name] for name in names}


class GistAsker(Asker):
    """Asks the lenses, and the sources by all of the decoder's first layers."""

    def __init__(self, bundle: Bundle, data: Path, names: Sequence[str], layers: int) -> None:
        super().__init__(bundle, layers, PLACES[-1])
        self.layers = self._reader.layers
        self.sources = sources(bundle, data, self._reader, names)

    def read(self, ids: Ids) -> None:
        super().read(ids)
        self._lens = self._history.session.lens

    def lens(self, name: str, suite: str, question: str, spans: Sequence[Range]) -> dict[str, Any]:
        prompt, count = self.prompt(question)[0], len(self._blocks())
        began = time.process_time()
        if name == ALL_BLOCKS:
            targets, worth = self._by_words(prompt, count)
        else:
            scores = self._history.targets(name, prompt)
            targets, worth = scores.targets, scores.target_scores
        seconds = time.process_time() - began
        inside, gold = targets < count, blocks_of(list(spans), self.focus.block_size)
        return {
            "suite": suite,
            "gold": gold,
            "targets": targets[inside],
            "worth": worth[inside],
            "seconds": seconds,
        }

    def _by_words(self, prompt: Ids, count: int) -> tuple[Ints, Floats]:
        assert isinstance(self._lens, HybridLens)
        found = self._lens.lexical.index.evidence(prompt, count)
        order = found.ranked(count)
        return found.blocks[order], found.best[order]

    def paid(self, name: str, questions: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Of each question [parts, layers, heads, N], and CPU seconds: of asking it, and of reading the history."""
        source, began = self.sources[name], time.process_time()
        source.read(self._blocks())
        read = time.process_time() - began
        nothing = self._parts(source.ask(self._turn(EMPTY)))
        for question in questions:
            began = time.process_time()
            parts = zip(self._parts(source.ask(self._turn(question))), nothing, strict=True)
            scores = np.stack([(one - none).max(-1) for one, none in parts])
            seconds = time.process_time() - began
            yield {"paid": scores.astype(np.float16), "seconds": seconds, "read": read}

    def _blocks(self) -> Ids:
        session, size = self._history.session, self.focus.block_size
        return session.tree.block_ids(np.arange(session.tokens // size))


@dataclass(frozen=True, eq=False)
class Row:
    """A question: what each lens found (targets, worth), and what each source is paid [parts, layers, heads, N]."""

    suite: str
    gold: Ints
    found: dict[str, tuple[Ints, Floats]]
    paid: dict[str, NDArray[np.float16]]
    seconds: dict[str, float]
    read: dict[str, float] = field(default_factory=dict)

    @property
    def blocks(self) -> int:
        return int(next(iter(self.paid.values())).shape[-1])


def kept(folder: Path, name: str, made: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What stands in a file of the folder, which is made if it is not there."""
    file = folder / f"{name}.npz"
    if not file.exists():
        part = file.with_suffix(".part.npz")
        np.savez(part, **made())
        part.rename(file)
    with np.load(file) as opened:
        return {key: opened[key][()] for key in opened.files}


def gathered(split: str, given: argparse.Namespace, asker: GistAsker) -> list[Row]:
    """All rows of a split."""
    rows: list[Row] = []
    histories = asked(split, given.data, asker.prompt, asker.bundle)
    for name, ids, questions in itertools.islice(histories, given.histories):
        chosen = questions[:: given.every]
        labels = [f"{split} {name} {given.every} {i}" for i in range(len(chosen))]
        wanted = [f"{label} {one}" for label in labels for one in (*ORDERS, *asker.sources)]
        if not all((given.kept / f"{one}.npz").exists() for one in wanted):
            asker.read(ids)
        lenses = [
            {one: kept(given.kept, f"{label} {one}", lambda q=q, one=one: asker.lens(one, *q)) for one in ORDERS}
            for label, q in zip(labels, chosen, strict=True)
        ]
        paid: list[dict[str, Any]] = [{} for _ in chosen]
        for one in asker.sources:
            names = [f"{label} {one}" for label in labels]
            missing = [
                q for name, (_, q, _) in zip(names, chosen, strict=True) if not (given.kept / f"{name}.npz").exists()
            ]
            answers = asker.paid(one, missing)
            for each, row in zip(names, paid, strict=True):
                row[one] = kept(given.kept, each, lambda answers=answers: next(answers))
        for found, own in zip(lenses, paid, strict=True):
            rows.append(
                Row(
                    str(found["hybrid"]["suite"]),
                    found["hybrid"]["gold"],
                    {one: (found[one]["targets"], found[one]["worth"]) for one in ORDERS},
                    {one: own[one]["paid"] for one in own},
                    {one: float(each[one]["seconds"]) for each in (found, own) for one in each},
                    {one: float(own[one]["read"]) for one in own},
                )
            )
        print(f"{split} {name}: {len(chosen)} questions", flush=True)
    return rows


Scores = Callable[[Row], Floats]
Order = Callable[[Row], Ints]


def standing(paid: Floats) -> Floats:
    """Deviations above the mean over blocks [..., N]."""
    shown: Floats = (paid - paid.mean(-1, keepdims=True)) / (paid.std(-1, keepdims=True) + 1e-9)
    return shown


JOINED: dict[str, Callable[[Floats], Floats]] = {
    "max": lambda paid: paid.max(1).mean(0),
    "mean": lambda paid: paid.mean((0, 1)),
    "max of deviations": lambda paid: standing(paid).max(1).mean(0),
    "mean of deviations": lambda paid: standing(paid).mean((0, 1)),
}
"""[layers, heads, N] -> [N]."""


def by_band(source: str, low: int, high: int, part: int, joined: str) -> Scores:
    return lambda row: JOINED[joined](row.paid[source][part][low:high].astype(np.float32))


def by_heads(source: str, heads: Ints) -> Scores:
    """heads [n, 3] as (part, layer, head)."""
    return lambda row: standing(row.paid[source][tuple(heads.T)].astype(np.float32)).mean(0)


def alone(scores: Scores) -> Order:
    return lambda row: np.argsort(-scores(row), kind="stable")


def by_lens(lens: str) -> Order:
    return lambda row: row.found[lens][0]


def fused(lens: str, scores: Scores, share: float) -> Order:
    """By the lens's worth, and a share of the deviations of attention."""

    def order(row: Row) -> Ints:
        joined = share * standing(scores(row))
        targets, worth = row.found[lens]
        joined[targets] += worth
        return np.argsort(-joined, kind="stable")

    return order


def figures(rows: Sequence[Row], order: Order) -> NDArray[np.float64]:
    """Of each question: whether the first places with their neighbours hold a block of its evidence, whether the first
    holds all of it, 1 / places up to the first that holds some [n, PLACES + 2]."""
    found = []
    for row in rows:
        blocks = order(row)
        places = blocks[apart(blocks, PLACES[-1], 1)]
        near = np.abs(places[:, None] - row.gold) <= 1
        hits = np.flatnonzero(near.any(1))
        first = int(hits[0]) + 1 if len(hits) else 0
        held = [first > 0 and first <= count for count in PLACES]
        found.append([*held, bool(near[:1].any(0).all()), 1 / first if first else 0.0])
    return np.array(found, float)


def worth(rows: Sequence[Row], order: Order) -> float:
    return float(figures(rows, order)[:, -1].mean())


def signals(rows: Sequence[Row], source: str, layers: int) -> dict[str, Scores]:
    """Of each band the way to read it that ranks best on these rows, and the best heads, each by itself."""
    found: dict[str, Scores] = {}
    for band, name in enumerate(BANDS):
        low, high = (round(layers * border / len(BANDS)) for border in (band, band + 1))
        ways = {
            f"{PARTS[part]}, {joined}": by_band(source, low, high, part, joined)
            for part, joined in itertools.product(range(len(PARTS)), JOINED)
        }
        best = max(ways, key=lambda way: worth(rows, alone(ways[way])))
        found[f"{source}, {name}: {best}"] = ways[best]
    every = np.argwhere(np.ones(rows[0].paid[source].shape[:3], bool))
    single = [worth(rows, alone(by_heads(source, each[None]))) for each in every]
    found[f"{source}, {HEADS} heads"] = by_heads(source, every[np.argsort(-np.array(single), kind="stable")[:HEADS]])
    return found


def compared(tuning: Sequence[Row], layers: int) -> Iterator[tuple[str, str, Order]]:
    """(name, the lens that it is compared to, order)."""
    for lens in ORDERS:
        yield lens, "lexical", by_lens(lens)
    for source in tuning[0].paid:
        for name, scores in signals(tuning, source, layers).items():
            yield name, "lexical", alone(scores)
            for lens in LENSES:
                share = max(SHARES, key=lambda share: worth(tuning, fused(lens, scores, share)))
                yield f"{name}, and {share} of it beside {lens}", lens, fused(lens, scores, share)


def row_of(name: str, lens: str, held: Sequence[Row], order: Order) -> dict[str, Any]:
    """Shares in %, with intervals, and differences to the lens; by suite at five places."""
    shown, base = figures(held, order), figures(held, by_lens(lens))
    told: dict[str, Any] = {"by": name}
    for i, count in enumerate(PLACES):
        told[f"{count}"] = interval(shown[:, i])
    told |= {"all at 1": interval(shown[:, len(PLACES)]), "less": lens}
    for i, count in enumerate(PLACES):
        told[f"{count} less"] = interval(shown[:, i] - base[:, i]) if name != lens else ""
    suites = np.array([row.suite for row in held])
    return told | {
        f"{suite} at 5": round(float(100 * shown[suites == suite, 1].mean()), 1) for suite in np.unique(suites)
    }


def interval(values: NDArray[np.float64]) -> str:
    found = bootstrap(100 * values)
    return f"{found.value:.1f} ({found.low:.1f} .. {found.high:.1f})"


def main() -> None:
    """Prints a table and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--kept", type=Path, help="folder for what was asked; one that is deleted by default")
    parser.add_argument("--every", type=int, default=4, help="ask every so-manyth question alone")
    parser.add_argument("--sources", default="excerpt,means")
    parser.add_argument("--layers", type=int, default=1000, help="the first so many; all by default")
    parser.add_argument("--quick", action="store_true", help="one history of each split, six layers, excerpt alone")
    parser.add_argument("--save", action="store_true")
    given = parser.parse_args()
    given.histories = None
    if given.quick:
        given.histories, given.every, given.layers, given.sources = 1, 8, 6, "excerpt"
    with tempfile.TemporaryDirectory() as scratch:
        given.kept = given.kept or Path(scratch)
        given.kept.mkdir(parents=True, exist_ok=True)
        bundle = load_bundle(given.bundle, "cpu", torch.int8)
        asker = GistAsker(bundle, given.data, given.sources.split(","), given.layers)
        tuning, held = (gathered(split, given, asker) for split in SPLITS)
    rows = [row_of(name, lens, held, order) for name, lens, order in compared(tuning, asker.layers)]
    seconds = {one: round(float(np.mean([row.seconds[one] for row in held])), 3) for one in held[0].seconds}
    read = {one: round(float(np.mean([row.read[one] for row in held])), 1) for one in held[0].read}
    summary = {
        "tuning": len(tuning),
        "held out": len(held),
        "blocks": round(float(np.mean([row.blocks for row in held]))),
        "CPU seconds a question": seconds,
        "CPU seconds to read a history": read,
    }
    report("gist_attention", rows, summary, given.save)


if __name__ == "__main__":
    main()

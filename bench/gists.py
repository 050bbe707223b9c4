"""What do gists tell the model: of what comes next, of which block is about a topic, and of exact values?

Each passage of held-out text is shown whole, and then as a working context whose newest ``--recent`` tokens are raw and
whose older ones are hidden, gists, or, in as many slots as those gists take, the newest of them raw. What is lost is
the KL divergence from what the base foretells after the whole passage; *kept* is the share of the loss of hiding that a
view makes good, and *kept of NLL* the same share of the gain in NLL of the true next tokens, which is a noisy figure
where a base gains hundredths of a nat. Views without gists are read by the base without adapters.

Block and topic: of eight blocks, each alone as a gist between two that say nothing of it, is it the right one whose
gist makes the block's own text likeliest, or the 32 tokens that followed it? Values: stated numbers, read off gists.

Beside the bundle's own gists stand plain means of 1, 2, 4 and 8 vectors, and *clusters*: keys and values of each block
as the base has read it, in so many clusters a head, in so many slots. Nothing was trained for either.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.common import BUNDLE, report
from mc_core.bundle.bundle import Bundle, load_bundle, make_gistnet
from mc_core.lab.data.cache import Stream, open_cache, prepare_cache
from mc_core.lab.data.chat_format import ChatEncoder
from mc_core.lab.evaluation.statistics import bootstrap, wilson
from mc_core.lab.key_clusters import ClusteredPast, Recorded
from mc_core.lab.training.focus.attention_mass import ViewAttention
from mc_core.lab.training.focus.batch import gist_sources
from mc_core.lab.training.focus.contexts import ContextKind, ContextShape, Passage, sample_context, view_of
from mc_core.lab.training.focus.model import FocusModel, ViewOutput
from mc_core.lab.training.focus.passages import PassageMaker, cut
from mc_core.lab.training.focus.view import ViewBatch, collate
from mc_core.lab.training.haystack import VALUE_WEIGHT
from mc_core.lab.training.run_data import model_tokenizer
from mc_core.lab.training.sample_maker import SampleMaker
from mc_core.models.decoder import Decoder
from mc_core.nets.gist_maker import GistMaker
from mc_core.positions.policies import make_policy

HORIZON, CHOICES = 64, 8
VECTORS = (1, 2, 4, 8)
ROOM = 1 << 20
"""W in which every view has room."""
VALUES_HISTORY = 512
ASKED = ("block", "topic")
RAW = "raw in slots of "
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Way:
    """How a history is shown: the base that reads it, how its gists are made and whether they are hidden, and how many
    of its newest tokens are raw; clusters: it is read whole, and older blocks are then seen as so many, 0 as they are.
    """

    decoder: Decoder
    gistnet: GistMaker
    recent: int
    kind: ContextKind = "lod1"
    hidden: bool = False
    clusters: int = 0

    @property
    def vectors(self) -> int:
        """Slots that a gist takes, 0 without any."""
        return self.clusters or (self.gistnet.vectors if self.kind == "lod1" and not self.hidden else 0)


class Reading:
    """Passages as one way shows them, read once, and what a base makes of them."""

    def __init__(self, model: FocusModel, batch: ViewBatch, gists: Tensor, start: int, block_size: int) -> None:
        """start: from which unit on all is raw."""
        self._model, self._start, self._size = model, start, block_size
        self._read = Recorded(ViewAttention(batch, model.policy))
        self._seen = model.read(batch, gists, attention=self._read)

    def output(self, clusters: int) -> ViewOutput:
        """Of the passages as they were read; with ``clusters`` as the units from ``start`` on see them then."""
        if not clusters:
            return self._seen
        model, seen, start = self._model, self._seen, self._start
        past = ClusteredPast(
            self._read, seen.batch.place, model.rotary, block_size=self._size, start=start, clusters=clusters
        )
        hidden = model.decoder(model.decoder.embed(seen.batch.ids[:, start:]), past)
        logits, later = seen.logits.clone(), seen.where.nonzero()[:, 1] >= start
        logits[later] = model.decoder.logits(hidden[seen.where[:, start:]])
        return replace(seen, logits=logits)


class Reader:
    """Shows passages to a base under a bundle's mask and positions."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle, self.size = bundle, bundle.block_size
        self.policy = make_policy(bundle.positions, bundle.decoder.config, self.size, bundle.sigma_scale)

    @torch.inference_mode()
    def read(self, passages: Sequence[Passage], ways: Mapping[str, Way]) -> Iterator[tuple[str, ViewOutput]]:
        """What each way's base makes of the passages. Ways that differ in clusters alone share a reading."""
        whole: dict[Way, Reading] = {}
        for name, way in ways.items():
            plain = replace(way, clusters=0)
            reading = whole.get(plain) or self._reading(passages, plain)
            if way.kind == "full":
                whole[plain] = reading
            yield name, reading.output(way.clusters)

    def _reading(self, passages: Sequence[Passage], way: Way) -> Reading:
        shape = ContextShape(ROOM, way.recent, self.size, self.bundle.segment_blocks, way.gistnet.vectors)
        rng = np.random.default_rng(0)
        contexts = [sample_context(rng, passage, way.kind, shape) for passage in passages]
        views = [view_of(p, wc, shape, hidden_gists=way.hidden) for p, wc in zip(passages, contexts, strict=True)]
        model = FocusModel(way.decoder, way.gistnet, self.policy)
        batch = collate(views, self.policy, model.rotary)
        gists = model.made(gist_sources(passages, views, self.size))
        return Reading(model, batch, gists, contexts[0].tail_start, self.size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=BUNDLE, help="with its gists, whether or not they have passed")
    parser.add_argument("--data", type=Path, required=True, help="folder of text; its held-out documents are read")
    parser.add_argument("--cache", type=Path, help="where its tokens are kept, such as a run's cache")
    parser.add_argument("--history", type=int, default=1984, help="tokens")
    parser.add_argument("--recent", type=int, default=256, help="newest tokens, raw in each view")
    parser.add_argument("--passages", type=int, default=24, help="of each source")
    parser.add_argument("--asked", type=int, default=8, help="blocks of each source; of values four times that")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.passages = options.asked = 2

    stock, bundle = load_bundle(options.model, gists=False), load_bundle(options.model, gists=True)
    with tempfile.TemporaryDirectory() if options.cache is None else nullcontext(options.cache) as cache:
        tokenizer = model_tokenizer(options.model)
        prepare_cache(options.data, tokenizer, Path(cache))
        streams = open_cache(Path(cache), "held_out")
        samples = SampleMaker(streams, ChatEncoder(tokenizer), held_out=True)
        reader = Reader(stock)
        nets = {f"means of {m}": (stock.decoder, _means(stock, m)) for m in VECTORS}
        if bundle.manifest.gistnet is not None:
            nets["the bundle's"] = (bundle.decoder, bundle.gistnet)
        ways = _ways(reader, nets, options)
        worths = _worths(reader, ways, [s for s in streams if len(s) > options.history + HORIZON], options)
        alone = {name: replace(way, recent=reader.size) for name, way in ways.items() if not name.startswith(RAW)}
        asked = {f"{what} of 8": _chosen(reader, alone, streams, options.asked, what) for what in ASKED}
        asked |= {"values": _values(reader, alone, samples, 4 * options.asked)}
        rows = [_row(name, worths) | {what: of.get(name, "") for what, of in asked.items()} for name in ways]
    chosen = {name: getattr(options, name) for name in ("history", "recent", "passages", "asked")}
    raw = {name: RAW + str(way.vectors) for name, way in ways.items() if way.vectors and not name.startswith(RAW)}
    beaten = {f"sources where {name} beat raw": _beaten(worths, name, slots) for name, slots in raw.items()}
    report("gists", rows, beaten | chosen | {"model": options.model.name}, options.save)


def _means(bundle: Bundle, vectors: int) -> GistMaker:
    arguments = {"kind": "mean", "pooling": "mean", "vectors": vectors}
    return make_gistnet(bundle.decoder.config.hidden_size, bundle.block_size, arguments).eval()


def _ways(reader: Reader, nets: Mapping[str, tuple[Decoder, GistMaker]], options: argparse.Namespace) -> dict[str, Way]:
    """By name; the whole history comes first."""
    stock, one, recent = reader.bundle.decoder, _means(reader.bundle, 1), options.recent
    ways = {"whole": Way(stock, one, recent, "full"), "hidden": Way(stock, one, recent, hidden=True)}
    ways |= {name: Way(decoder, gistnet, recent) for name, (decoder, gistnet) in nets.items()}
    ways |= {f"clusters of {m}": Way(stock, one, recent, "full", clusters=m) for m in VECTORS}
    older = (options.history - recent) // reader.size - 1
    for m in sorted({way.vectors for way in ways.values()} - {0}):
        ways[f"{RAW}{m}"] = Way(stock, one, recent + older * m, hidden=True)
    return ways


def _worths(
    reader: Reader, ways: Mapping[str, Way], streams: Sequence[Stream], options: argparse.Namespace
) -> dict[str, dict[str, Floats]]:
    """By view and source: KL from the whole passage and NLL [passages, 2], means over the horizon."""
    found: dict[str, dict[str, Floats]] = {name: {} for name in ways}
    for stream in streams:
        rng = np.random.default_rng(0)
        passages = [cut(rng, stream, options.history, HORIZON) for _ in range(options.passages)]
        of_source: dict[str, list[list[float]]] = {name: [] for name in ways}
        for passage in passages:
            full: Tensor | None = None
            for name, output in reader.read([passage], ways):
                logits = output.logits[output.future].log_softmax(-1)
                full = logits if full is None else full
                kl = (full.exp() * (full - logits)).sum(-1).mean()
                of_source[name].append([float(kl), float(output.losses()[output.future].mean())])
        for name, values in of_source.items():
            found[name][stream.name] = np.array(values)
    return found


def _row(name: str, worths: Mapping[str, Mapping[str, Floats]]) -> dict[str, Any]:
    mine, hidden, whole = (np.stack(list(worths[view].values())) for view in (name, "hidden", "whole"))
    # Passages of all sources are drawn together; shares are of means, so they are drawn as means.
    made_good = bootstrap((hidden - mine)[..., 0].reshape(-1))
    lost, gain = hidden[..., 0].mean(), (hidden - whole)[..., 1].mean()
    return {
        "view": name,
        "KL": float(mine[..., 0].mean()),
        "kept": made_good.value / lost,
        "low": made_good.low / lost,
        "high": made_good.high / lost,
        "NLL": float(mine[..., 1].mean()),
        "kept of NLL": float((hidden - mine)[..., 1].mean() / gain),
    }


def _beaten(worths: Mapping[str, Mapping[str, Floats]], name: str, slots: str) -> str:
    """Sources of which the gists lose less than raw text in the same slots, of how many."""
    mine, raw = worths[name], worths[slots]
    return f"{sum(raw[source][:, 0].mean() >= mine[source][:, 0].mean() for source in mine)} of {len(mine)}"


def _chosen(
    reader: Reader, ways: Mapping[str, Way], streams: Sequence[Stream], count: int, what: str
) -> dict[str, str]:
    """By view, how often the right one of eight blocks makes the text asked for likelier than any other does."""
    rng, size, right = np.random.default_rng(1), reader.size, Counter[str]()
    for stream in streams:
        for _ in range(count):
            starts = rng.integers(0, len(stream) - 3 * size, CHOICES + 1)
            plain, *pieces = (stream.ids[start : start + 2 * size].astype(np.int64) for start in starts.tolist())
            wanted = int(rng.integers(CHOICES))
            asked = pieces[wanted][:size] if what == "block" else pieces[wanted][size:]
            for name, output in reader.read([_between(plain, piece[:size], asked) for piece in pieces], ways):
                found = output.where.nonzero()[:, 0]
                losses = torch.zeros(CHOICES).index_add(0, found, output.losses() * output.future)
                right[name] += int(losses.argmin()) == wanted
    return {name: _share(right[name], len(streams) * count) for name in ways}


def _between(plain: NDArray[np.int64], block: NDArray[np.int64], after: NDArray[np.int64]) -> Passage:
    history = np.concatenate([plain[: len(block)], block, plain[len(block) :]])
    weights = np.concatenate([np.zeros(len(history)), np.ones(len(after))]).astype(np.float32)
    return Passage(np.concatenate([history, after]), len(history), weights)


def _values(reader: Reader, ways: Mapping[str, Way], samples: SampleMaker, count: int) -> dict[str, str]:
    """By view, of questions about statements that no context opens, those whose values' tokens are all the likeliest
    ones, each after the right ones before it."""
    rng, right = np.random.default_rng(2), Counter[str]()
    maker = PassageMaker(samples, reader.size)
    for _ in range(count):
        passage = maker.memory(rng, VALUES_HISTORY, tasks=("passkey", "needle", "multikey"))
        for name, output in reader.read([replace(passage, opened=())], ways):
            values = output.weights >= VALUE_WEIGHT
            targets = output.batch.targets[output.where]
            right[name] += bool((output.logits.argmax(-1) == targets)[values].all())
    return {name: _share(right[name], count) for name in ways}


def _share(right: int, n: int) -> str:
    share = wilson(right, n)
    return f"{share.value:.2f} ({share.low:.2f} to {share.high:.2f})"


if __name__ == "__main__":
    main()

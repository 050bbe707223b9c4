"""Working contexts with counterfactual labels, made once for a run and kept as one safetensors file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from numpy.random import Generator
from safetensors.torch import load_file
from torch import Tensor

from mc_core.bundle.bundle import Bundle
from mc_core.context.working_context import WorkingContext
from mc_core.errors import ConfigError
from mc_core.focus.entry_vectors import entry_vectors
from mc_core.lab.data.arrays import Ints
from mc_core.lab.tasks.make import make_episode
from mc_core.lab.training.focus.contexts import ContextShape, Passage, open_blocks, sample_context
from mc_core.lab.training.focus.passages import PassageMaker
from mc_core.lab.training.haystack import Haystack
from mc_core.lab.training.lens.counterfactual import Counterfactuals, Labels
from mc_core.lab.training.lens.samples import CHAT, tail_of, touched
from mc_core.lab.training.memory_samples import episode_document
from mc_core.models.loading import save_tensors
from mc_core.nets.lensnet import LensInput
from mc_core.session.session import QUESTION_TOKENS
from mc_core.tree.tree import MegaContextTree

HISTORY, BUDGET, RECENT = (512, 4096), (320, 512), 128
HORIZON, ACTIONS, MEMORY, GOLD_OPEN = 32, 10, 0.6, 0.5
MOST_ENTRIES = 160


@dataclass(frozen=True, eq=False)
class EntryBatch:
    """B working contexts of at most n entries with their labels (``Labels``); tails of at most t ids, newest last.

    entries [B, n, d] float16; tails [B, t] int32; costs [B, n]; masks True = real.
    """

    entries: Tensor
    levels: Tensor
    spans: Tensor
    distances: Tensor
    costs: Tensor
    entry_mask: Tensor
    tails: Tensor
    tail_mask: Tensor
    gain: Tensor
    harm: Tensor
    gain_known: Tensor
    harm_known: Tensor
    can_expand: Tensor
    can_collapse: Tensor

    def __len__(self) -> int:
        return len(self.entries)

    def rows(self, chosen: Tensor, device: torch.device) -> EntryBatch:
        """Some of the contexts, on a device."""
        return EntryBatch(*(getattr(self, field.name)[chosen].to(device) for field in fields(self)))

    def view(self, embed: Callable[[Tensor], Tensor]) -> LensInput:
        """As LensNet is given it."""
        return LensInput(
            self.entries.float(),
            self.levels,
            self.spans,
            self.distances,
            embed(self.tails.long()),
            self.entry_mask,
            self.tail_mask,
        )


@dataclass(frozen=True, eq=False)
class Case:
    """A passage with a working context of it, what the lens is asked with, and the blocks that hold the answer."""

    passage: Passage
    wc: WorkingContext
    tail: Ints
    gold: Ints


def text_case(rng: Generator, passages: PassageMaker, shape: ContextShape) -> Case:
    """Real text: what comes next is what matters, and the newest tokens are all that asks for it."""
    passage = passages.text(rng, _history(rng), HORIZON)
    wc = sample_context(rng, passage, "mixed", shape)
    tail = passage.ids[max(0, passage.history - QUESTION_TOKENS) : passage.history]
    return Case(passage, wc, tail[-int(rng.integers(64, QUESTION_TOKENS + 1)) :], np.empty(0, np.int64))


def memory_case(rng: Generator, maker: Haystack, task: str, shape: ContextShape) -> Case:
    """An episode in text, a question about it, and its answer to be foretold; the gold blocks may be open or not."""
    episode = make_episode(rng, task, maker.held_out, int(rng.integers(4)))
    chat = bool(rng.random() < CHAT)
    tokens = max(_history(rng), maker.room(episode.statements, chat) + shape.recent)
    document = episode_document(rng, maker, episode, tokens, chat)
    asked = int(rng.integers(len(document.turns)))
    prompt, answer = document.turns[asked]
    ids = np.concatenate([document.ids, prompt, answer.ids])
    weights = np.ones(len(ids), np.float32)
    history = len(document.ids) + len(prompt)
    gold = np.unique([b for place in document.gold[asked] for b in touched(place, shape.block_size)]).astype(np.int64)
    opened = tuple(gold.tolist()) if rng.random() < GOLD_OPEN else ()
    passage = Passage(ids, history, weights)
    wc = sample_context(rng, passage, "mixed", shape)
    before = wc.tail_start // shape.block_size
    wanted = [block for block in opened if block < before and not _raw(wc, block)]
    open_blocks(wc, wanted, 0)
    return Case(passage, wc, tail_of(rng, maker, prompt, answer.ids[:0]), gold)


def _raw(wc: WorkingContext, block: int) -> bool:
    return bool(((wc.levels == 0) & (wc.indices == block)).any())


def _history(rng: Generator) -> int:
    return int(np.exp(rng.uniform(*np.log(HISTORY))))


def make_labels(
    bundle: Bundle,
    maker: Haystack,
    tasks: tuple[str, ...],
    count: int,
    seed: int,
    progress: Callable[[int], None] | None = None,
) -> EntryBatch:
    """``count`` labelled contexts: ``MEMORY`` of them of episodes, the rest of real text."""
    passages = PassageMaker(maker, bundle.block_size)
    rows: list[dict[str, Tensor]] = []
    while len(rows) < count:
        rng = np.random.default_rng([seed, len(rows)])
        budget = int(rng.integers(BUDGET[0], BUDGET[1] + 1))
        shape = ContextShape(budget, RECENT, bundle.block_size, bundle.segment_blocks, bundle.gistnet.vectors)
        measured = Counterfactuals(bundle, shape)
        task = tasks[int(rng.integers(len(tasks)))]
        case = memory_case(rng, maker, task, shape) if rng.random() < MEMORY else text_case(rng, passages, shape)
        labels = measured.labels(rng, case.passage, case.wc, ACTIONS, case.gold)
        rows.append(_row(case, labels, measured.tree(case.passage)))
        if progress is not None:
            progress(len(rows))
    return EntryBatch(**{name: _padded([row[name] for row in rows], name.startswith("tail")) for name in rows[0]})


def _row(case: Case, labels: Labels, tree: MegaContextTree) -> dict[str, Tensor]:
    """One context's tensors; of more than ``MOST_ENTRIES`` entries, the newest."""
    wc, last = case.wc, slice(-MOST_ENTRIES, None)
    columns = {
        "levels": wc.levels.astype(np.int64),
        "spans": wc.ends() - wc.starts(),
        "distances": case.passage.history - wc.ends(),
        "costs": wc.entry_costs().astype(np.int64),
        "entry_mask": np.ones(len(wc), bool),
        **vars(labels),
    }
    tensors = {name: torch.from_numpy(values[last].copy()) for name, values in columns.items()}
    tail = torch.from_numpy(case.tail.astype(np.int32))
    return {
        "entries": entry_vectors(wc, tree)[last].half().cpu(),
        **tensors,
        "tails": tail,
        "tail_mask": torch.ones(len(tail), dtype=torch.bool),
    }


def _padded(rows: list[Tensor], in_front: bool) -> Tensor:
    """Rows [n_i, ...] as one [B, n, ...], padded with zeros in front or at the end."""
    if in_front:
        return _padded([row.flip(0) for row in rows], False).flip(1)
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def open_labels(path: Path, make: Callable[[], EntryBatch], count: int) -> EntryBatch:
    """The labels of ``path``, made and written if they are not there; ConfigError if they are not ``count``."""
    if not path.exists():
        made = make()
        part = path.with_suffix(".part")
        save_tensors(part, {field.name: getattr(made, field.name) for field in fields(made)})
        part.replace(path)
    found = load_file(path)
    names = {field.name for field in fields(EntryBatch)}
    if set(found) != names or len(found["entries"]) != count:
        raise ConfigError(f"labels: {path} does not hold {count} labelled contexts; remove it to have it made anew")
    return EntryBatch(**found)

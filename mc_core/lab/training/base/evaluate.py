"""What a base can do in the layout that it is served in: recall of open blocks, and loss on held-out text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from tokenizers import Tokenizer

from mc_core.errors import ConfigError
from mc_core.kv.layout import SEGMENT_BLOCKS
from mc_core.lab.data.arrays import Ints
from mc_core.lab.data.cache import Stream
from mc_core.lab.data.chat_format import ChatEncoder
from mc_core.lab.tasks.facts import KINDS, MAGIC, Fact, FactKind
from mc_core.lab.training.base.batches import Batch
from mc_core.lab.training.base.decode import greedy
from mc_core.lab.training.base.model import BaseModel
from mc_core.lab.training.sample import BLOCK, Difficulty, Layout
from mc_core.lab.training.sample_maker import SampleMaker
from mc_core.models.decoder import Decoder

CONTEXTS, TAIL = (512, 1024), 128
SEGMENTS = (SEGMENT_BLOCKS * BLOCK, BLOCK)
"""Tokens of a segment: as served, and the least."""
ANSWER_TOKENS = 40
PROSE = 1.0
RECALL_SETS: dict[str, tuple[tuple[FactKind, ...], tuple[int, int]]] = {
    "magic_7_digits": ((MAGIC,), (7, 7)),
    "magic_3_to_6_digits": ((MAGIC,), (3, 6)),
    "all_kinds": (KINDS, (3, 7)),
}


@dataclass(frozen=True)
class RecallResult:
    """Shares of answers that hold the value: of all, of facts inside one segment, of facts across a border.

    A share of no samples is None.
    """

    samples: int
    right: float | None
    within: int
    within_right: float | None
    across: int
    across_right: float | None


@dataclass(frozen=True)
class Question:
    """A prompt of a full working context, and what is asked for; across: the fact lies in more than one segment."""

    prompt: Ints
    fact: Fact
    across: bool


@dataclass(frozen=True)
class Serving:
    """A layout to ask in: a context of so many tokens, under the block mask with a segment length or the full mask."""

    context: int = CONTEXTS[-1]
    block_mask: bool = True
    segment: int = SEGMENTS[0]

    @property
    def name(self) -> str:
        """Such as "block_32_1024"."""
        return f"block_{self.segment}_{self.context}" if self.block_mask else f"full_{self.context}"

    @property
    def tail_start(self) -> int:
        """Where the tail begins; about ``TAIL`` tokens before the end."""
        return BLOCK + (self.context - TAIL - BLOCK) // self.segment * self.segment


def evaluate_base(
    decoder: Decoder,
    tokenizer: Tokenizer,
    streams: Sequence[Stream],
    samples: int = 200,
    seed: int = 0,
    told: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Recall by set and layout, and loss on held-out text by mask, as a JSON object; the decoder is left in eval mode.

    streams: held-out ones. samples: questions for each recall figure; told is called with a line a figure.
    """
    model, encoder = BaseModel(decoder.eval()), ChatEncoder(tokenizer)
    longest = decoder.config.max_position_embeddings
    contexts = [n for n in CONTEXTS if n + ANSWER_TOKENS <= longest]
    if not contexts:
        raise ConfigError(f"evaluation needs {CONTEXTS[0] + ANSWER_TOKENS} positions, the model has {longest}")
    found: dict[str, Any] = {"samples": samples, "recall": {}, "text_loss": {}}
    for name, (kinds, digits) in RECALL_SETS.items():
        found["recall"][name] = {}
        for serving in _servings(contexts):
            result = recall_accuracy(model, streams, encoder, kinds, digits, samples, serving, seed)
            found["recall"][name][serving.name] = asdict(result)
            told(f"recall {name} {serving.name}: {result}")
    for serving in _servings(contexts[-1:]):
        losses = text_loss(model, streams, serving, max(8, samples // 2), seed)
        found["text_loss"][serving.name] = losses
        told(f"loss {serving.name}: {losses}")
    return found


def _servings(contexts: Sequence[int]) -> list[Serving]:
    longest = contexts[-1]
    narrow = [Serving(longest, segment=segment) for segment in SEGMENTS[1:]]
    return [*(Serving(n) for n in contexts), *narrow, Serving(longest, block_mask=False)]


def recall_accuracy(
    model: BaseModel,
    streams: Sequence[Stream],
    encoder: ChatEncoder,
    kinds: Sequence[FactKind],
    digits: tuple[int, int],
    samples: int = 200,
    serving: Serving = Serving(),
    seed: int = 0,
    batch: int = 20,
) -> RecallResult:
    """Ask for facts planted in history blocks of a held-out text; keys (and some templates) are new to the model.

    The prompt is the pinned first block, history blocks with gaps between them (the fact's and their neighbours are
    among them) and a tail that ends in the question; answers are decoded greedily.
    """
    maker = SampleMaker([s for s in streams if not s.chat] or list(streams), encoder, held_out=True)
    rng = np.random.default_rng([seed, 7])
    asked = [make_question(rng, maker, serving, kinds, digits) for _ in range(samples)]
    right: list[bool] = []
    for start in range(0, samples, batch):
        part = asked[start : start + batch]
        prompts = torch.from_numpy(np.stack([q.prompt for q in part])).to(model.decoder.device)
        layout = (serving.tail_start, serving.segment, serving.block_mask)
        replies = greedy(model, prompts, *layout, ANSWER_TOKENS, encoder.turn_end)
        texts = encoder.tokenizer.decode_batch(replies)
        right += [q.fact.value in text for q, text in zip(part, texts, strict=True)]
    within, across = ([ok for ok, q in zip(right, asked, strict=True) if q.across is kind] for kind in (False, True))
    return RecallResult(samples, _share(right), len(within), _share(within), len(across), _share(across))


def make_question(
    rng: Generator, maker: SampleMaker, serving: Serving, kinds: Sequence[FactKind], digits: tuple[int, int]
) -> Question:
    """A context of ``serving.context`` tokens that ends where the answer begins; its fact stands in the history."""
    tail_start, segment = serving.tail_start, serving.segment
    layout = Layout(serving.context + ANSWER_TOKENS, tail_start)
    for _ in range(200):
        made = maker.recall(rng, layout, Difficulty((1, 4), digits), kinds, turns=1, style=PROSE)
        if made is None:
            continue
        sample, facts = made
        end = len(sample) - len(maker.answer(facts[0], 1))
        stated = np.array(maker.encoder.text(" " + facts[0].stated), np.int64)[1:]
        at = _find(sample.ids[:tail_start], stated)
        extra = end - serving.context
        if at is not None and 0 <= extra < layout.length - tail_start:
            # Newest text is cut, not history, so that all prompts are equally long.
            prompt = np.concatenate([sample.ids[:tail_start], sample.ids[tail_start + extra : end]])
            first, last = (at - BLOCK) // segment, (at + len(stated) - 1 - BLOCK) // segment
            return Question(prompt, facts[0], first != last)
    raise ConfigError("the corpus' held-out part is too small to ask questions about")


def text_loss(
    model: BaseModel,
    streams: Sequence[Stream],
    serving: Serving,
    samples: int = 32,
    seed: int = 0,
    batch: int = 8,
) -> dict[str, float]:
    """Mean loss of the last tokens (``TAIL``) of windows of held-out text in nats a token, for "text" and "chat"."""
    rng = np.random.default_rng([seed, 11])
    found: dict[str, float] = {}
    for name in ("text", "chat"):
        kind = [s for s in streams if s.chat == (name == "chat") and len(s) > serving.context]
        if not kind:
            continue
        shares = np.array([len(s) ** 0.5 for s in kind])
        windows = []
        for _ in range(samples):
            stream = kind[int(rng.choice(len(kind), p=shares / shares.sum()))]
            start = int(rng.integers(len(stream) - serving.context))
            windows.append(stream.ids[start : start + serving.context + 1].astype(np.int64))
        ids = torch.from_numpy(np.stack(windows)).to(model.decoder.device)
        found[name] = float(torch.cat([_losses(model, part, serving) for part in torch.split(ids, batch)]).mean())
    return found


@torch.no_grad()
def _losses(model: BaseModel, ids: torch.Tensor, serving: Serving) -> torch.Tensor:
    zeros = torch.zeros(ids.shape[0], ids.shape[1] - 1)
    last = zeros.clone()
    last[:, -TAIL:] = 1.0
    layout = (serving.tail_start, serving.segment, serving.block_mask)
    batch = Batch(ids[:, :-1], ids[:, 1:], last, zeros.long(), zeros[:, 0].long(), *layout)
    return model.token_losses(batch)[0][:, -TAIL:]


def _share(right: Sequence[bool]) -> float | None:
    return round(sum(right) / len(right), 4) if right else None


def _find(ids: Ints, wanted: Ints) -> int | None:
    if len(wanted) > len(ids):
        return None
    hits = np.flatnonzero((np.lib.stride_tricks.sliding_window_view(ids, len(wanted)) == wanted).all(1))
    return int(hits[0]) if len(hits) else None

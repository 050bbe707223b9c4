"""The model card (``README.md``) of a trained base, written from what the run and its evaluation measured."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

from tokenizers import Tokenizer

from mc_core.kv.layout import SEGMENT_BLOCKS
from mc_core.lab.training.base.base_config import BaseTrainConfig
from mc_core.lab.training.base.model import BaseShape
from mc_core.lab.training.sample import BLOCK
from mc_core.models.decoder_config import DecoderConfig

BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"
LIMITS = """- It is a toy as a language model: it has next to no knowledge of the world, and what it says is unreliable.
- It was taught to find facts that stand in its context and to repeat them in stock phrases; questions put in another
  way, and facts that must be combined, are mostly beyond it.
- Its chat is formulaic, and it knows no language that its training text does not hold.
- It has not been tested or tuned for safety. Do not put it in front of users."""


@dataclass(frozen=True)
class Card:
    """What a run cannot know of itself: the bundle's name, where its data came from (markdown) and the licence.

    license: a name as the Hugging Face hub knows it, such as "cc-by-sa-4.0".
    """

    name: str
    sources: str = ""
    license: str = ""
    about: str = ""

    def text(
        self, config: DecoderConfig, tokenizer: Tokenizer, settings: Mapping[str, Any], figures: Mapping[str, Any]
    ) -> str:
        """The whole card. settings: of the run (``BaseTrainConfig.summary``); figures: of ``bundle.json``."""
        front = [f"license: {self.license}"] if self.license else []
        front += ["library_name: megacontext", "tags: [megacontext, long-context]"]
        size = _parameters(config)
        shape = (
            f"{config.num_layers} layers, width {config.hidden_size}, feed-forward {config.intermediate_size}, "
            f"{config.num_heads} attention heads of {config.head_dim} with {config.num_kv_heads} key/value heads, "
            f"{config.max_position_embeddings:,} positions, tied embeddings, weights of queries and keys normalised"
        )
        about = self.about or "A small base model for MegaContext, trained with the block mask."
        parts = [
            "---\n" + "\n".join(front) + "\n---",
            f"# {self.name}",
            about,
            f"**Shape.** {size / 1e6:.1f} M parameters in the form of Qwen3 ({shape}). History is attended to under "
            f"the block mask: each group of {SEGMENT_BLOCKS} blocks of {BLOCK} tokens sees itself and the first block, "
            "the newest tokens see everything.",
            f"**Tokenizer.** Byte-level BPE of {tokenizer.get_vocab_size():,} tokens, trained on the same text; every "
            "digit is a token of its own. Chats are ChatML (`<|im_start|>`, `<|im_end|>`).",
            "```\nmegacontext serve --model THIS_FOLDER\n```",
            "## Data\n\n" + (self.sources.strip() or "The sources were not stated when this card was written."),
            "## Training\n\n"
            f"{figures['steps']:,} steps, {figures['tokens']:,} tokens, seed {figures['seed']}, from random weights. "
            "Plain text and dialogues are mixed with generated tasks: facts are planted, and asked for later.\n\n"
            f"```\n{training_command(settings)}\n```",
            with_figures(f"## Figures\n\n{BEGIN}\n{END}", figures),
            f"## Limits\n\n{LIMITS}",
        ]
        return "\n\n".join(parts) + "\n"


def training_command(settings: Mapping[str, Any]) -> str:
    """The command that makes such a run, from its settings; what has its default is left out."""
    words = ["megacontext train base --data CORPUS --out RUN --tokenizer THIS_FOLDER"]
    for field, value in _changed(BaseTrainConfig, settings) + _changed(BaseShape, settings.get("shape", {})):
        pairs = [f"{k}={v}" for k, v in value.items()] if isinstance(value, Mapping) else [str(value)]
        words += [f"--{field.replace('_', '-')} {shlex.quote(pair)}" for pair in pairs]
    return " \\\n  ".join(words)


def with_figures(card: str, figures: Mapping[str, Any]) -> str:
    """The card with its section of figures written anew; unchanged if it has none."""
    head, begin, rest = card.partition(BEGIN)
    _, end, tail = rest.partition(END)
    return f"{head}{begin}\n{_figures(figures)}\n{end}{tail}" if begin and end else card


def _figures(figures: Mapping[str, Any]) -> str:
    losses = ", ".join(f"{name} {value:.2f}" for name, value in figures.get("training_losses", {}).items())
    lines = [f"Last losses in training (nats a token; answers: share foretold whole): {losses}."] if losses else []
    if "text_loss" in figures:
        lines += ["", "Loss on held-out documents, last 128 tokens of a context, in nats a token:", ""]
        lines += ["| mask, context | text | dialogue |", "| --- | --- | --- |"]
        for name, loss in figures["text_loss"].items():
            lines.append(f"| {_layout(name)} | {_number(loss.get('text'))} | {_number(loss.get('chat'))} |")
    if "recall" in figures:
        lines += ["", _recall_head(figures), ""]
        lines += ["| facts | mask, context | recalled | inside a block | across a border |"]
        lines += ["| --- | --- | --- | --- | --- |"]
        for name, layouts in figures["recall"].items():
            for layout, found in layouts.items():
                shares = (_percent(found[key]) for key in ("right", "within_right", "across_right"))
                lines.append(f"| {name.replace('_', ' ')} | {_layout(layout)} | {' | '.join(shares)} |")
    return "\n".join(lines) or "Not measured."


def _recall_head(figures: Mapping[str, Any]) -> str:
    return (
        "Recall: a fact with a key never used in training stands in the history blocks of a held-out text, among gaps "
        f"and other facts; a chat question at the end asks for it ({figures['samples']} questions a row, greedy):"
    )


def _layout(name: str) -> str:
    """ "block_32_1024" in words."""
    kind, *numbers = name.split("_")
    return f"blocks of {numbers[0]}, {numbers[1]} tokens" if kind == "block" else f"full, {numbers[0]} tokens"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _changed(kind: Any, settings: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Options whose value differs from the default; the curriculum and the shape are no options themselves."""
    found = []
    for field in fields(kind):
        value = settings.get(field.name)
        if field.name in ("stages", "shape", "device", "tokenizer") or value is None:
            continue
        if field.default is MISSING or value != field.default:
            found.append((field.name, value))
    return found


def _parameters(config: DecoderConfig) -> int:
    width, heads, pairs = config.hidden_size, config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    layer = width * (2 * heads + 2 * pairs) + 3 * width * config.intermediate_size + 2 * width + 2 * config.head_dim
    return config.vocab_size * width + config.num_layers * layer + width

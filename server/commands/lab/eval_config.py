"""What ``megacontext eval SUITE..`` can be told."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from mc_core.errors import ConfigError
from mc_core.lab.evaluation.chats import CHAT
from mc_core.lab.evaluation.methods import BASELINES
from mc_core.lab.evaluation.suites import EVERY_SUITE, MEASURES, TUNING
from mc_core.lab.tasks.plant import PLANTED
from server.settings import BUNDLED_MODEL

ALL = "all"
WEIGHTS = ("float32", "bfloat16", "float16", "int8")
HELP = {
    "suites": f"{ALL}, or some of: {', '.join((*EVERY_SUITE, *TUNING))}",
    "bundle": "folder of the model, or its GGUF file; over HTTP its tokenizer cuts the text",
    "data": "folder of .jsonl or .jsonl.xz files; one document in 100, which training left out, is the text",
    "text": "UTF-8 file to use as text instead",
    "lengths": "tokens of history, comma-separated",
    "depths": "cells of the depth grid",
    "trials": "questions of each suite at each length",
    "histories": "histories of each length at most; a passkey takes one for itself",
    "lenses": "lenses to compare, comma-separated; by default the bundle's learned one, alone and fused, and lexical",
    "baselines": f"{', '.join(BASELINES)}: all at the same budget, comma-separated; none for none",
    "baseline_trials": "questions of each suite at each length by a baseline",
    "budget": "tokens of the working context; by default the bundle's or the server's own",
    "max_answer_tokens": "longest reply",
    "reading": "framed or plain: with the chat template's frames around opened places, or without",
    "one_chat": "each question is the next turn of one chat, which keeps them; for one lens, beside rag or no baseline",
    "weights": "float32, bfloat16, float16 or int8: how the base's weights are kept, as a server's --weights",
    "show_gists": "show gists though the GistNet has not passed its evaluation yet",
    "nll_lengths": "nll: tokens of history, each with a quarter of it as budget",
    "samples": "nll: passages of each source",
    "refocuses": "stability: refocuses of the long conversation",
    "history_tokens": "stability: tokens of history when the focus is timed",
    "http": "ask a running server at this address instead of an engine in this process",
    "api_key": "the server's key, if it has any",
    "seed": "of texts, statements and samples",
    "device": "cpu, cuda, ...",
    "out": "folder for results.json and heat maps (SVG)",
    "write": "also put what decides about the networks into the bundle's bundle.json",
}
"""Help for each option of SuitesConfig."""


@dataclass(frozen=True)
class SuitesConfig:
    """suites: what to run; the rest is told in HELP."""

    suites: tuple[str, ...] = field(metadata={"positional": True})
    bundle: Path = BUNDLED_MODEL
    data: Path | None = None
    text: Path | None = None
    lengths: tuple[int, ...] = (8_192, 32_768, 131_072)
    depths: int = 11
    trials: int = 100
    histories: int = 10
    lenses: tuple[str, ...] = ()
    baselines: tuple[str, ...] = BASELINES
    baseline_trials: int = 30
    budget: int | None = None
    max_answer_tokens: int = 96
    reading: str = "auto"
    one_chat: bool = False
    weights: str = WEIGHTS[0]
    show_gists: bool = False
    nll_lengths: tuple[int, ...] = (1024, 1920, 4096)
    samples: int = 64
    refocuses: int = 1000
    history_tokens: int = 1_000_000
    http: str | None = None
    api_key: str | None = None
    seed: int = 0
    device: str = "cpu"
    out: Path | None = None
    write: bool = False

    def __post_init__(self) -> None:
        known = (ALL, *EVERY_SUITE, *TUNING)
        strange = [name for name in self.suites if name not in known]
        if strange:
            raise ConfigError(f"suites must be of {', '.join(known)}, got {', '.join(strange)}")
        for name in ("trials", "baseline_trials", "max_answer_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.reading not in ("auto", "framed", "plain"):
            raise ConfigError(f"reading must be auto, framed or plain, got {self.reading!r}")
        if self.weights not in WEIGHTS:
            raise ConfigError(f"weights must be one of {', '.join(WEIGHTS)}, got {self.weights!r}")
        if self.one_chat and (len(self.lenses) != 1 or set(self.baselines) - {"rag", "none"}):
            raise ConfigError("one_chat: a chat has one lens; name it with lenses, and give rag or none as baselines")
        if not self.lengths:
            raise ConfigError("lengths must name at least one length")
        if (self.data is None) == (self.text is None):
            raise ConfigError("data or text must be given, and not both")
        if self.text is not None and self.chosen(MEASURES):
            raise ConfigError(f"text: {' and '.join(self.chosen(MEASURES))} measure documents of a corpus; give data")
        own = (
            self.chosen((CHAT, *MEASURES)) or self.write or self.lenses or self.show_gists or self.weights != "float32"
        )
        if self.http is not None and own:
            raise ConfigError(
                "http: a server has its own lens and settings: no lenses, weights, chat, nll, stability, write with one"
            )

    def chosen(self, among: tuple[str, ...]) -> tuple[str, ...]:
        """The suites that were asked for, of some."""
        asked = (*self.suites, *EVERY_SUITE) if ALL in self.suites else self.suites
        return tuple(name for name in among if name in asked)

    @property
    def questions(self) -> tuple[str, ...]:
        """Suites that are planted in histories of the asked lengths."""
        return self.chosen(PLANTED)

    @property
    def chats(self) -> bool:
        """Whether chats are asked about."""
        return bool(self.chosen((CHAT,)))

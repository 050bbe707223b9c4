"""``megacontext eval base``: what a base recalls in the layout it is served in, and its loss on held-out text."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import typer

from mc_core.errors import ConfigError
from mc_core.lab.data.cache import held_out_streams
from mc_core.lab.data.model_tokenizer import raw_tokenizer
from mc_core.lab.training.base.evaluate import evaluate_base
from mc_core.lab.training.base.export import add_figures
from mc_core.models.loading import load_decoder
from server.commands.common import plain_errors
from server.commands.options import with_options

HELP = {
    "bundle": "folder of the model to measure",
    "data": "folder of .jsonl or .jsonl.xz files; one document in 100, which training left out, is read",
    "samples": "questions for each figure",
    "seed": "of the questions",
    "device": "cpu, cuda, ...",
    "write": "also put the figures into the bundle's bundle.json and model card",
}
"""Help for each option of EvaluateConfig."""


@dataclass(frozen=True)
class EvaluateConfig:
    """What to measure, on which held-out text."""

    bundle: Path
    data: Path
    samples: int = 200
    seed: int = 0
    device: str = "cpu"
    write: bool = False

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ConfigError(f"samples must be at least 1, got {self.samples}")


def base_command() -> Callable[..., None]:
    """The typer command."""
    return with_options(EvaluateConfig, base, HELP)


def base(config: EvaluateConfig) -> None:
    """Measure a base model: recall of facts in its context, and loss on held-out text. Prints a JSON object."""
    with plain_errors():
        decoder = load_decoder(config.bundle, device=config.device)
        tokenizer = raw_tokenizer(config.bundle)
        streams = held_out_streams(config.data, tokenizer)
        figures = evaluate_base(
            decoder, tokenizer, streams, config.samples, config.seed, lambda line: typer.echo(line, err=True)
        )
        if config.write:
            add_figures(config.bundle, figures)
    typer.echo(json.dumps(figures, indent=2))

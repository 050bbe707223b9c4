"""``megacontext train base``: a small base model from any folder of JSON lines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import typer
from rich.console import Console

from mc_core.lab.training.base.base_config import BaseTrainConfig
from mc_core.lab.training.base.card import Card
from mc_core.lab.training.base.export import export_run
from mc_core.lab.training.base.trainer import train_base
from server.commands.common import plain_errors
from server.commands.lab.preset import load_preset
from server.commands.lab.training import DECODER_HELP, bundle_field, bundle_folder, run_shown
from server.commands.options import Field, with_options

HELP = {
    **DECODER_HELP,
    "tokenizer": "folder with a tokenizer.json to use; a new one is trained by default",
    "vocab_size": "size of a new tokenizer",
    "tokenizer_chars": "characters that a new tokenizer is trained on",
    "total_tokens": "tokens of the whole run",
    "history_weight": "loss weight of history tokens under the block mask",
    "hidden_size": "width of the model",
    "num_layers": "layers of the model",
    "num_heads": "attention heads",
    "num_kv_heads": "heads of keys and values",
    "head_dim": "width of a head",
    "intermediate_size": "width of the feed-forward layers",
    "max_positions": "longest sequence",
    "rope_theta": "base of the rotary positions",
}
"""Help for each option of BaseTrainConfig."""
BUNDLE = (
    bundle_field("the finished model"),
    Field("name", str, None, False, "the model's name; the bundle folder's by default"),
    Field("sources", Path, None, False, "markdown file for the model card: where the data come from, and licences"),
    Field("license", str, None, False, "licence of the weights for the model card, such as cc-by-sa-4.0"),
)


def base_command() -> Callable[..., None]:
    """The typer command."""
    return with_options(BaseTrainConfig, base, HELP, BUNDLE, load_preset)


def base(
    config: BaseTrainConfig, bundle: str | None, name: str | None, sources: str | None, license: str | None
) -> None:
    """Train a small base model and write it as a folder to serve. Run the same command again to go on after a stop."""
    target, console = bundle_folder(config, bundle), Console(stderr=True)
    with plain_errors():
        about_data = Path(sources).read_text(encoding="utf-8") if sources else ""
        run_shown(console, train_base, config)
        export_run(config.out, target, Card(name or target.resolve().name, about_data, license or ""))
    console.print(f"serve it with: megacontext serve --model {target}", markup=False)
    console.print(f"measure it with: megacontext eval base --bundle {target} --data {config.data}", markup=False)
    typer.echo(target)

"""``megacontext train lens``: LensNet for a base."""

from __future__ import annotations

from collections.abc import Callable

import typer
from rich.console import Console

from mc_core.lab.training.lens.export import export_lens
from mc_core.lab.training.lens.lens_training import LensTrainConfig
from mc_core.lab.training.lens.summary import lens_summary
from mc_core.lab.training.lens.trainer import train_lens
from server.commands.common import plain_errors
from server.commands.lab.preset import load_preset
from server.commands.lab.tables import print_recall
from server.commands.lab.training import RUN_HELP, bundle_field, bundle_folder, run_shown
from server.commands.options import with_options

HELP = {
    **RUN_HELP,
    "model": "bundle or Hugging Face folder to train for",
    "kind": "of LensNet: cross or transformer",
    "width": "of LensNet",
    "heads": "attention heads of LensNet",
    "layers": "of LensNet",
    "keys": "lens keys a block",
    "key_dim": "numbers a lens key",
    "key_width": "width that a block is read at for its keys",
    "queries": "of a tail",
    "key_reach": "tokens on each side that a token is read with",
    "words": "size of word vectors, fitted to those of a sentence encoder; 0 for none",
    "word_hidden": "units between an embedding and its word vector",
    "fit_steps": "steps in which word vectors are fitted",
    "rank": "weight of the rank loss of entry scores",
    "balance": "weight of their budget balance",
    "illegal": "weight of wishes that cannot be met",
    "preference": "weight of preferences between working contexts",
    "tasks": "of the episodes, repeatable",
    "shares": "weight of a kind of samples (a task, text or reply) in the loss, repeatable",
    "block_size": "K: 16, 32 or 64",
    "steps": "of the whole run",
    "growth": "share of the run in which samples grow from dense pieces, and scores from means",
    "episodes": "of other tasks than paraphrases a step",
    "distractors": "further statements of an episode at most",
    "concepts": "things said in the paraphrases of a step",
    "pairs": "passages and dialogue turns of the corpus a step",
    "bank": "blocks of real text that hard negatives are taken from",
    "fresh": "blocks of the bank that are replaced each step",
    "hard": "hard negatives a step",
    "temperature": "of the contrastive loss",
    "labels": "working contexts with counterfactual labels; 0 leaves entry scores untrained",
    "entry_contexts": "of these a step",
    "rate": "learning rate",
    "validation_steps": "steps between short measurements of recall",
    "validation_blocks": "blocks of the histories that recall is measured in",
    "histories": "histories of the measurement at the end",
    "glances": "histories of the short measurements",
}
"""Help for each option of LensTrainConfig."""
BUNDLE = (bundle_field("the bundle with its LensNet"),)


def lens_command() -> Callable[..., None]:
    """The typer command of ``train lens``."""
    return with_options(LensTrainConfig, lens, HELP, BUNDLE, load_preset)


def lens(config: LensTrainConfig, bundle: str | None) -> None:
    """Train LensNet for a base. Run the same command again to go on after a stop."""
    target, console = bundle_folder(config, bundle), Console(stderr=True)
    with plain_errors():
        trained = run_shown(console, train_lens, config)
        summary = lens_summary(trained)
        export_lens(config, trained.net, target, summary)
    print_recall(console, summary["recall"])
    console.print(f"serve it with: megacontext serve --model {target} --lens hybrid", markup=False)
    typer.echo(target)

"""``megacontext train focus`` and ``train joint``: GistNet for a base, alone or with the base."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import typer
from rich.console import Console

from mc_core.lab.training.focus.export import blend, export_focus
from mc_core.lab.training.focus.focus_training import FocusTrainConfig
from mc_core.lab.training.focus.summary import mc_summary
from mc_core.lab.training.focus.trainer import train_focus
from server.commands.common import plain_errors
from server.commands.lab.preset import load_preset
from server.commands.lab.tables import print_summaries
from server.commands.lab.training import DECODER_HELP, bundle_field, bundle_folder, run_shown
from server.commands.options import Field, with_options

HELP = {
    **DECODER_HELP,
    "model": "bundle or Hugging Face folder to start from",
    "mode": "frozen (GistNet alone), adapted (and low-rank updates of the base) or joint (the base too)",
    "kind": "of GistNet: mean, transformer, encoder or excerpt (adapted alone)",
    "layers": "of a transformer GistNet: 2 or 4; of the base, that an encoder reads with",
    "heads": "attention heads of a transformer GistNet",
    "pooling": "mean, query or cls",
    "head": "linear or mlp",
    "vectors": "of a gist: 1, 2, 4 or 8",
    "wide": "channels of an encoder's MLP, or of the one that chooses excerpts",
    "rank": "adapted: of the low-rank updates, 16 at most",
    "token": "weight of the NLL of the next tokens",
    "kl": "weight of the KL to the full view",
    "lod1": "weight of the LOD1 gist regression",
    "lod2": "weight of the LOD2 gist regression",
    "separation": "weight of keeping neighbouring gists apart",
    "block_size": "K: 16, 32 or 64",
    "recent_tokens": "newest tokens that are always raw",
    "steps": "of the whole run",
    "accumulate": "batches whose gradients are added up for a step",
    "base_share": "joint: share of batches that are the base's own training",
    "text_share": "joint: share of the plain tokens of such a batch that count; answers always do",
    "gist_rate": "learning rate of GistNet",
    "train_embeddings": "joint: train the base's embeddings too; without them a LensNet stays right",
    "blend": "joint: how far the base that is written lies from the one begun with to the one ended with",
}
"""Help for each option of FocusTrainConfig."""
BUNDLE = (
    bundle_field("the bundle with its GistNet"),
    Field("samples", int, None, False, "held-out passages of the summary, a source; 64 by default"),
)


def focus_command() -> Callable[..., None]:
    """The typer command of ``train focus``."""
    return with_options(FocusTrainConfig, focus, HELP, BUNDLE, load_preset)


def joint_command() -> Callable[..., None]:
    """The typer command of ``train joint``."""
    return with_options(FocusTrainConfig, joint, HELP, BUNDLE, load_preset)


def joint(config: FocusTrainConfig, bundle: str | None, samples: str | None) -> None:
    """Train GistNet and the base together: a base that has seen gists reads them better."""
    focus(replace(config, mode="joint"), bundle, samples)


def focus(config: FocusTrainConfig, bundle: str | None, samples: str | None) -> None:
    """Train GistNet for a base. Run the same command again to go on after a stop."""
    target, console = bundle_folder(config, bundle), Console(stderr=True)
    with plain_errors():
        trained = run_shown(console, train_focus, config)
        blend(config, trained.model)
        summary = mc_summary(config, trained.model, int(samples or 64))
        export_focus(config, trained.model, target, summary)
    print_summaries(console, {config.out.name: summary})
    console.print(f"serve it with: megacontext serve --model {target}", markup=False)
    typer.echo(target)

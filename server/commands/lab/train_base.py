"""``megacontext train base``: a small base model from any folder of JSON lines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from mc_core.lab.training.base.base_config import BaseTrainConfig
from mc_core.lab.training.base.card import Card
from mc_core.lab.training.base.export import export_run
from mc_core.lab.training.base.trainer import train_base
from mc_core.lab.training.progress import TrainProgress
from server.commands.common import plain_errors
from server.commands.lab.preset import load_preset
from server.commands.options import Field, with_options

HELP = {
    "data": "folder of .jsonl or .jsonl.xz files with a text or with messages a row",
    "out": "the run's folder; a run that is in it is gone on with",
    "tokenizer": "folder with a tokenizer.json to use; a new one is trained by default",
    "vocab_size": "size of a new tokenizer",
    "tokenizer_chars": "characters that a new tokenizer is trained on",
    "mix": "share of a corpus file, by its name under the data folder, repeatable; by square root of size by default",
    "batch_tokens": "tokens a step, about",
    "total_tokens": "tokens of the whole run",
    "muon_rate": "learning rate of the layers' matrices",
    "adam_rate": "learning rate of embeddings and norms",
    "weight_decay": "of the layers' matrices",
    "warmup_steps": "steps until the full rate",
    "decay": "share of the run in which the rate falls",
    "floor": "share of the rate that is left at the end",
    "clip": "longest gradient",
    "history_weight": "loss weight of history tokens under the block mask",
    "seed": "of weights and batches; the same seed makes the same run",
    "device": "cpu, cuda, ...",
    "precision": "float32, bfloat16 or auto (bfloat16 on CUDA alone)",
    "compile": "compile the layers (torch.compile)",
    "workers": "processes that make batches ahead; 0: none, batches are made between steps",
    "checkpoint_minutes": "minutes between checkpoints",
    "log_steps": "steps between reports",
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
    Field("bundle", Path, None, False, "where the finished model goes; OUT/bundle by default"),
    Field("name", str, None, False, "the model's name; the bundle folder's by default"),
    Field("sources", Path, None, False, "markdown file for the model card: where the data come from, and licences"),
    Field("license", str, None, False, "licence of the weights for the model card, such as cc-by-sa-4.0"),
)
Report = Callable[[TrainProgress], None]


def base_command() -> Callable[..., None]:
    """The typer command."""
    return with_options(BaseTrainConfig, base, HELP, BUNDLE, load_preset)


def base(
    config: BaseTrainConfig, bundle: str | None, name: str | None, sources: str | None, license: str | None
) -> None:
    """Train a small base model and write it as a folder to serve. Run the same command again to go on after a stop."""
    target = Path(bundle) if bundle else config.out / "bundle"
    console = Console(stderr=True)
    with plain_errors():
        about_data = Path(sources).read_text(encoding="utf-8") if sources else ""
        with progress_bars(console) as bars:
            trained = train_base(config, reporter(bars))
        if not trained.finished:
            console.print(f"stopped at step {trained.step} of {config.steps}; the same command goes on from here")
            raise typer.Exit(3)
        export_run(config.out, target, Card(name or target.resolve().name, about_data, license or ""))
    console.print(f"serve it with: megacontext serve --model {target}", markup=False)
    console.print(f"measure it with: megacontext eval base --bundle {target} --data {config.data}", markup=False)
    typer.echo(target)


def reporter(bars: Progress) -> Report:
    """Shows a run's reports: one bar a phase, or one a file while the corpus is tokenised."""
    tasks: dict[tuple[str, str], TaskID] = {}

    def report(progress: TrainProgress) -> None:
        key = (progress.phase, progress.note if progress.phase == "cache" else "")
        if key not in tasks:
            tasks[key] = bars.add_task(" ".join(part for part in key if part), total=None, figures="")
        bars.update(tasks[key], completed=progress.done, total=progress.total or None, figures=figures_line(progress))

    return report


def figures_line(progress: TrainProgress) -> str:
    """The loss in nats a token, recall and speed, as far as they are known; ``log.jsonl`` has the rest."""
    losses = progress.losses or {}
    parts = [f"loss {losses['loss']:.3f}"] if "loss" in losses else []
    if progress.recall is not None:
        parts.append(f"recalled {progress.recall:.0%}")
    if progress.tokens_per_second:
        parts.append(f"{progress.tokens_per_second:,.0f} tokens/s")
    return "  ".join(parts)


def progress_bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=10),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}", markup=False),
        console=console,
    )

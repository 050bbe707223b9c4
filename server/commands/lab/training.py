"""What the commands that train share: help for common settings, progress on the terminal, how a stopped run ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from mc_core.lab.training.progress import Report, TrainProgress
from mc_core.lab.training.run_config import RunConfig
from server.commands.options import Field

RUN_HELP = {
    "data": "folder of .jsonl or .jsonl.xz files with a text or with messages a row",
    "out": "the run's folder; a run that is in it is gone on with",
    "mix": "share of a corpus file, by its name under the data folder, repeatable; by square root of size by default",
    "warmup_steps": "steps until the full rate",
    "decay": "share of the run in which the rate falls",
    "floor": "share of the rate that is left at the end",
    "clip": "longest gradient",
    "seed": "of weights and batches; the same seed makes the same run",
    "device": "cpu, cuda, ...",
    "workers": "processes that make batches ahead; 0: none, they are made between steps",
    "checkpoint_minutes": "minutes between checkpoints",
    "log_steps": "steps between reports",
}
"""Help for each option of RunConfig."""
DECODER_HELP = {
    **RUN_HELP,
    "muon_rate": "learning rate of the base's matrices",
    "adam_rate": "learning rate of the base's embeddings and norms",
    "weight_decay": "of the base's matrices",
    "batch_tokens": "tokens of a batch of the base's own training, about",
    "precision": "float32, bfloat16 or auto (bfloat16 on CUDA alone)",
    "compile": "compile the base's layers (torch.compile)",
}
"""Help for each option of DecoderRunConfig."""


class Trained(Protocol):
    """A run as it ended, or was stopped."""

    step: int

    @property
    def finished(self) -> bool: ...


C = TypeVar("C", bound=RunConfig)
T = TypeVar("T", bound=Trained)


def bundle_field(what: str) -> Field:
    """The option that says where the result goes."""
    return Field("bundle", Path, None, False, f"where {what} goes; OUT/bundle by default")


def bundle_folder(config: RunConfig, bundle: str | None) -> Path:
    """Where the result goes."""
    return Path(bundle) if bundle else config.out / "bundle"


def run_shown(console: Console, train: Callable[[C, Report], T], config: C) -> T:
    """The finished run, its progress shown on the way; a stopped one ends the command with status 3."""
    with progress_bars(console) as bars:
        trained = train(config, reporter(bars))
    if not trained.finished:
        console.print(f"stopped at step {trained.step} of {config.steps}; the same command goes on from here")
        raise typer.Exit(3)
    return trained


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

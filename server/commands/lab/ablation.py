"""A matrix of focus training runs, and one table that compares them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import typer
from pydantic import TypeAdapter, ValidationError
from rich.console import Console

from mc_core.errors import ConfigError
from mc_core.lab.training.focus.focus_training import FocusTrainConfig
from mc_core.lab.training.focus.summary import mc_summary
from mc_core.lab.training.focus.trainer import train_focus
from server.commands.lab.preset import load_preset, runs_of
from server.commands.lab.tables import print_summaries
from server.commands.lab.training import run_shown

SUMMARY = "summary.json"


def run_matrix(matrix: str, data: Path, model: Path, out: Path, steps: int | None, samples: int) -> None:
    """See ``megacontext ablate``."""
    console = Console(stderr=True)
    runs = [(name, _config(name, values, data, model, out, steps)) for name, values in runs_of(load_preset(matrix))]
    found: dict[str, dict[str, Any]] = {}
    for name, config in runs:
        found[name] = _run(console, name, config, samples)
        print_summaries(console, {name: found[name]})
    print_summaries(Console(), found)
    (out / "ablation.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    typer.echo(json.dumps({"matrix": matrix, "runs": found}))


def _config(
    name: str, values: dict[str, Any], data: Path, model: Path, out: Path, steps: int | None
) -> FocusTrainConfig:
    settings = {**values, "data": data, "model": model, "out": out / name.replace("/", "-")}
    if steps is not None:
        settings["steps"] = steps
    try:
        return TypeAdapter(FocusTrainConfig).validate_python(settings)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in error.errors(include_input=False))
        raise ConfigError(f"run {name!r} of the matrix: {problems}") from None


def _run(console: Console, name: str, config: FocusTrainConfig, samples: int) -> dict[str, Any]:
    """Train one run, or read what it came to."""
    path = config.out / SUMMARY
    if path.exists():
        return dict(json.loads(path.read_text(encoding="utf-8")))
    _share_cache(config)
    console.print(name, style="bold", markup=False)
    started = time.monotonic()
    trained = run_shown(console, train_focus, config)
    seconds = time.monotonic() - started
    summary = {
        **mc_summary(config, trained.model, samples),
        "train_seconds": round(seconds, 1),
        "tokens": trained.tokens,
    }
    path.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return summary


def _share_cache(config: FocusTrainConfig) -> None:
    """The runs of a matrix read one tokenised corpus."""
    shared = config.out.parent / "cache"
    shared.mkdir(parents=True, exist_ok=True)
    config.out.mkdir(parents=True, exist_ok=True)
    link = config.out / "cache"
    if not link.exists():
        link.symlink_to(shared.resolve(), target_is_directory=True)

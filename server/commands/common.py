"""What the commands share: options of a client, and errors as one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, TextIO

import typer

Url = Annotated[str, typer.Option("--url", envvar="MEGACONTEXT_URL", help="the server's address")]
ApiKey = Annotated[
    str | None, typer.Option("--api-key", envvar="MEGACONTEXT_API_KEY", help="the server's key, if it has any")
]
DEFAULT_URL = "http://127.0.0.1:8000"


@contextmanager
def plain_errors(*others: type[Exception]) -> Iterator[None]:
    """What went wrong on purpose, as one line on stderr and exit status 1; anything else keeps its traceback.

    others: errors that say so beside the library's own and the system's, such as a client's.
    """
    from mc_core.errors import MegaContextError

    expected: tuple[type[Exception], ...] = (MegaContextError, OSError, *others)
    try:
        yield
    except expected as error:
        typer.echo(f"megacontext: {error}", err=True)
        raise typer.Exit(1) from error


def standard(stream: TextIO | None, name: str) -> TextIO:
    """Standard input, output or error; one line and exit status 2 if whoever started this closed it."""
    if stream is None:
        typer.echo(f"megacontext: standard {name} is closed", err=True)
        raise typer.Exit(2)
    return stream


def first_key(api_key: str | None) -> str | None:
    """The environment may hold the server's whole list of keys; a client needs one of them."""
    return api_key.split(",")[0].strip() if api_key else None

"""``megacontext chat`` and ``megacontext ingest``: clients of a running server."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from server.commands.common import DEFAULT_URL, ApiKey, Url, first_key, plain_errors, standard


class Kind(StrEnum):
    """Of a text; as the clients name them."""

    document = "document"
    chat = "chat"


def chat(
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    session: Annotated[str | None, typer.Option(help="go on with this session; a new one by default")] = None,
    system: Annotated[str | None, typer.Option(help="system message of a new session")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="longest reply, in tokens")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=2, help="0: always the likeliest token")] = None,
) -> None:
    """Chat with a running server in the terminal."""
    from clients import terminal
    from clients.megacontext_client import ClientError

    if session and system:
        raise typer.BadParameter("--system is for a new session; it can't be changed in an old one")
    for stream, name in ((sys.stdin, "input"), (sys.stdout, "output"), (sys.stderr, "error")):
        standard(stream, name)  # before a session is made: no prompt is shown, and no line read, without all of them
    options = {"max_tokens": max_tokens, "temperature": temperature}
    with plain_errors(ClientError):
        given = {name: value for name, value in options.items() if value is not None}
        terminal.run(url, first_key(api_key), session, system, given)


def ingest(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", exists=True, dir_okay=False, readable=True, help="texts in UTF-8"),
    ],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    session: Annotated[str | None, typer.Option(help="append to this session; a new one by default")] = None,
    title: Annotated[str | None, typer.Option(help="what the text is called, for the model to read; one file")] = None,
    kind: Annotated[Kind | None, typer.Option(help="what the text is: a chat is a transcript of one")] = None,
) -> None:
    """Append text files of any size to a session; prints the session's id."""
    from rich.console import Console

    from clients.megacontext_client import ClientError, MegaContext
    from clients.progress import upload_file

    if title and len(files) > 1:
        raise typer.BadParameter("--title is of one file; give each its own by a call of its own")
    notes = Console(stderr=True)
    with plain_errors(ClientError), MegaContext(url, first_key(api_key)) as server:
        session_id = server.session(session).id if session else server.create_session().id
        # Said before the upload too, so that a broken one can be gone on with or deleted.
        notes.print(f"session {session_id}", highlight=False, style="dim")
        for file in files:
            added = upload_file(server, session_id, file, notes, title, None if kind is None else kind.value)
            notes.print(f"{file}: {added.tokens_added:,} tokens, {added.tokens:,} in all", markup=False)
        typer.echo(session_id)

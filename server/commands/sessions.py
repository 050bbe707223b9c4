"""``megacontext sessions``: what a running server holds, and sessions as files."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.commands.common import DEFAULT_URL, ApiKey, Url, first_key, plain_errors, standard

if TYPE_CHECKING:
    from clients.megacontext_client import MegaContext, Session

SessionId = Annotated[str, typer.Argument(metavar="SESSION", help="the session's id")]
STANDARD = Path("-")
"""In place of a file: standard input or output."""
Json = Annotated[bool, typer.Option("--json", help="JSON instead of a table")]


def list_sessions(
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="sessions on a page")] = 20,
    after: Annotated[str | None, typer.Option(help="the page behind this cursor, which the page before names")] = None,
    implicit: Annotated[
        bool | None, typer.Option("--implicit/--explicit", help="of chats that named no session alone, or the others")
    ] = None,
    as_json: Json = False,
) -> None:
    """The sessions of a key, newest first, a page at a time."""
    with _server(url, api_key) as server:
        page = server.session_page(limit, after, implicit)
    if as_json:
        _print_json({"data": [session.raw for session in page.data], "next": page.next})
        return
    from rich.table import Column, Table

    widest = max((len(session.id) for session in page.data), default=0)  # an id is to be copied whole
    table = Table(Column("session", no_wrap=True, min_width=widest), "tokens", "updated", "expires", "metadata")
    for session in page.data:
        metadata = json.dumps(session.metadata, ensure_ascii=False) if session.metadata else ""
        times = _time(session.raw["updated"]), _life(session)
        mark = " of another tokenizer" if session.raw.get("other_tokenizer") else ""
        table.add_row(session.id, f"{session.tokens:,}{mark}", *times, metadata[:60])
    _print(table)
    if page.next is not None:
        typer.echo(f"more: --after {page.next}", err=True)


def show(
    session: SessionId,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    messages: Annotated[int, typer.Option(min=0, max=1000, help="how many of its newest messages")] = 10,
    as_json: Json = False,
) -> None:
    """A session, and its newest messages."""
    from itertools import islice

    with _server(url, api_key) as server:
        found = server.session(session)
        newest_first = server.messages(session, page_size=max(1, messages), newest_first=True)
        newest = list(islice(newest_first, messages))[::-1]
    if as_json:
        _print_json({**found.raw, "messages": [message.raw for message in newest]})
        return
    from rich.table import Table

    about = Table(show_header=False)
    for name, value in found.raw.items():
        is_time = name in ("created", "updated", "expires")
        about.add_row(name, _time(value) if is_time else _plain(value))
    _print(about)
    if newest:
        table = Table("tokens", "role", "content")
        for message in newest:
            place = f"{message.start:,} to {message.end:,}"
            table.add_row(place, message.role, _plain(message.content or message.raw.get("title") or "")[:200])
        _print(table)


def export(
    session: SessionId,
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="SESSION.jsonl by default; -: standard output")
    ] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    force: Annotated[bool, typer.Option("--force", help="replace a file that is there")] = False,
) -> None:
    """A session as one file (docs/export-format.md), checked as it comes; prints the file's name."""
    from clients.transfer import save, write

    with _server(url, api_key) as server:
        if file == STANDARD:
            write(server.export(session), standard(sys.stdout, "output").buffer)
            return
        target = file or Path(f"{session}.jsonl")
        if target.exists() and not force:
            raise FileExistsError(f"{target} is there already; --force replaces it")
        save(server.export(session), target)
    typer.echo(str(target))


def import_session(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="-: standard input")],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    keep_id: Annotated[bool, typer.Option("--keep-id", help="under the id that it had; else under a new one")] = False,
    as_json: Json = False,
) -> None:
    """Make a session of an exported file; prints its id, on standard error where standard output is closed."""
    with (
        _server(url, api_key) as server,
        nullcontext(standard(sys.stdin, "input").buffer) if file == STANDARD else file.open("rb") as source,
    ):
        made: Session = server.import_session(source, keep_id=keep_id)
    # Who does not learn the id can't find the session among others.
    closed = sys.stdout is None
    if as_json:
        _print_json(made.raw, err=closed)
        return
    if left_out := made.raw.get("notes_left_out"):
        typer.echo(f"{left_out} notes were left out: other sessions have their names", err=True)
    typer.echo(made.id, err=closed)


def keep(
    sessions: Annotated[list[str], typer.Argument(metavar="SESSION...", help="ids of sessions")],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    ttl: Annotated[
        float | None, typer.Option(min=0, help="for so many seconds without use instead; 0: as the server says")
    ] = None,
) -> None:
    """Keep sessions for good, or for a time of their own; prints what each has now."""
    with _server(url, api_key) as server:
        for session in sessions:
            found = server.update(session, keep=ttl is None, ttl=ttl)
            typer.echo(f"{session}\t{_life(found)}")


def delete(
    sessions: Annotated[list[str], typer.Argument(metavar="SESSION...", help="ids of sessions")],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
) -> None:
    """Delete sessions and all of their histories, for good; prints the id of each that is gone."""
    if not yes:
        typer.confirm(f"delete {len(sessions)} session{'s' if len(sessions) > 1 else ''} for good?", abort=True)
    with _server(url, api_key) as server:
        for session in sessions:
            server.delete(session)
            typer.echo(session)


class _server:
    """The client of a server; what it refuses is told as one line."""

    def __init__(self, url: str, api_key: str | None) -> None:
        from clients.megacontext_client import ClientError, MegaContext

        self._errors = plain_errors(ClientError, ValueError)
        self._client = MegaContext(url, first_key(api_key))

    def __enter__(self) -> MegaContext:
        self._errors.__enter__()
        return self._client

    def __exit__(self, *failure: Any) -> bool | None:
        self._client.close()
        return self._errors.__exit__(*failure)


def _plain(value: Any) -> str:
    """Text without what a terminal would obey."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _life(session: Session) -> str:
    """When a session expires, in a word."""
    if session.keep:
        return "kept"
    return "never" if session.expires is None else _time(session.expires)


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")


def _print(table: Any) -> None:
    from rich.console import Console

    Console(markup=False).print(table, markup=False)


def _print_json(value: Any, err: bool = False) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2), err=err)

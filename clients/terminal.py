"""A chat in the terminal: text as it comes, and after each turn what the model had in view."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from clients.megacontext_client import ChatResult, ClientError, MegaContext, TextKind
from clients.progress import upload_file

HELP = """\
/focus                       what the model has in view, and why
/ingest FILE [as TITLE]      append a text file to the history
/transcript FILE [as TITLE]  append the transcript of another conversation
/rewind N                    forget everything from token N on
/undo                        take your last message back, and the reply to it
/fork                        go on in a new session that begins as this one
/help                        this list
/quit                        leave (the session stays on the server)"""
FOCUS_ROWS = 40


class Terminal:
    """One session at one server, read from ``read`` (a prompt -> a line; EOFError or KeyboardInterrupt to leave)."""

    def __init__(
        self,
        server: MegaContext,
        session_id: str,
        console: Console,
        options: dict[str, Any] | None = None,
        read: Callable[[str], str] | None = None,
    ) -> None:
        self._server = server
        self._session = session_id
        self._console = console
        self._options = options or {}
        self._read = read or (lambda prompt: console.input(prompt))
        self._commands: dict[str, Callable[[str], None]] = {
            "/focus": self._focus,
            "/ingest": lambda rest: self._ingest(rest, "document"),
            "/transcript": lambda rest: self._ingest(rest, "chat"),
            "/rewind": self._rewind,
            "/undo": self._undo,
            "/fork": self._fork,
            "/help": lambda rest: self._console.print(HELP, markup=False, highlight=False),
        }

    def run(self) -> None:
        """Until /quit or the end of the input; what the server refuses is shown, and the chat goes on."""
        self._console.print(f"session {self._session}  ·  /help lists the commands", style="dim", highlight=False)
        while True:
            try:
                line = self._read("[bold cyan]> [/]").strip()
            except (EOFError, KeyboardInterrupt):
                self._console.print()
                return
            if line == "/quit":
                return
            if line:
                self._handle(line)

    def _handle(self, line: str) -> None:
        try:
            if line.startswith("/"):
                name, _, rest = line.partition(" ")
                self._commands.get(name, self._unknown)(rest.strip())
            else:
                self._turn(line)
        except (ClientError, OSError, ValueError) as error:
            self._console.print(f"[red]{escape(str(error))}[/]", highlight=False)
        except KeyboardInterrupt:
            self._console.print("\n[yellow]stopped[/]")

    def _turn(self, text: str) -> None:
        began = first = time.monotonic()
        with self._server.chat(self._session, text, stream=True, **self._options) as stream:
            try:
                for number, delta in enumerate(stream):
                    if number == 0:
                        first = time.monotonic()
                    self._console.out(delta.content, end="", highlight=False)
            finally:
                self._console.print()
            result = stream.result
        line = status_line(result, first - began, time.monotonic() - first)
        self._console.print(line, style="dim", highlight=False)

    def _focus(self, rest: str) -> None:
        focus = self._server.focus(self._session)
        table = Table("level", "tokens", "cost", "shown", "why", "score", "residency", box=None)
        shown = focus.entries[-FOCUS_ROWS:]
        for entry in shown:
            table.add_row(
                str(entry.level),
                f"{entry.start:,}-{entry.end:,}",
                str(entry.cost),
                "" if entry.shown is None else str(entry.shown),
                entry.reason or "",
                "" if entry.score is None else f"{entry.score:.3f}",
                "" if entry.residency is None else str(entry.residency),
            )
        self._console.print(table)
        older = (
            f"; {len(focus.entries) - len(shown)} older entries not shown" if len(shown) < len(focus.entries) else ""
        )
        self._console.print(
            f"{focus.tokens:,} tokens, {focus.raw_tokens:,} of them raw  ·  "
            f"cost {focus.cost:,} of {focus.budget:,}  ·  swap rate {focus.swap_rate:.3f}{older}",
            style="dim",
            highlight=False,
        )

    def _ingest(self, rest: str, kind: TextKind) -> None:
        if not rest:
            raise ValueError("which file? /ingest FILE [as TITLE]")
        file, title = Path(rest).expanduser(), None
        if not file.exists() and " as " in rest:
            name, _, title = rest.partition(" as ")
            file = Path(name.strip()).expanduser()
        added = upload_file(self._server, self._session, file, self._console, title, kind)
        self._console.print(f"{added.tokens_added:,} tokens added, {added.tokens:,} in all", highlight=False)

    def _rewind(self, rest: str) -> None:
        if not rest.isdecimal():
            raise ValueError("to which token? /rewind N")
        self._console.print(f"{self._server.rewind(self._session, int(rest)):,} tokens left", highlight=False)

    def _undo(self, rest: str) -> None:
        self._console.print(f"{self._server.undo(self._session):,} tokens left", highlight=False)

    def _fork(self, rest: str) -> None:
        left, self._session = self._session, self._server.fork(self._session).id
        self._console.print(f"session {self._session} goes on where {left} stays", style="dim", highlight=False)

    def _unknown(self, rest: str) -> None:
        raise ValueError("no such command; /help lists them")


def status_line(result: ChatResult, first_token: float, decoding: float) -> str:
    """History, budget, what was in view as shares of the history, and speed; times in seconds."""
    seen = result.x_megacontext
    tokens = int(seen.get("tokens") or 0)
    parts = [f"{tokens:,} tokens of history"]
    if seen.get("budget"):
        parts.append(f"budget {seen.get('cost', 0):,}/{seen['budget']:,} ({seen.get('cost', 0) / seen['budget']:.0%})")
    if tokens:
        parts.append("  ".join(f"{name} {seen.get(name, 0) / tokens:.1%}" for name in ("raw", "gisted", "hidden")))
    if seen.get("unavailable"):
        parts.append(f"unavailable {seen['unavailable']:,}")
    parts.append(f"first token {first_token:.2f} s")
    if result.usage and result.usage.completion_tokens > 1 and decoding > 0:
        # The first token's time is the prefill's, so it counts neither as a token nor as time here.
        parts.append(f"{(result.usage.completion_tokens - 1) / decoding:.1f} tokens/s")
    if result.finish_reason == "length":
        parts.append("cut at max_tokens")
    return "  ·  ".join(parts)


def run(
    base_url: str,
    api_key: str | None = None,
    session_id: str | None = None,
    system: str | None = None,
    options: dict[str, Any] | None = None,
) -> None:
    """Chat until the user leaves, in ``session_id`` or in a new session. ClientError if that can't be opened."""
    # Line editing and history for console.input; not on every platform.
    with suppress(ImportError):
        import readline  # noqa: F401
    console = Console()
    with MegaContext(base_url, api_key) as server:
        session = server.session(session_id) if session_id else server.create_session(system=system)
        Terminal(server, session.id, console, options).run()

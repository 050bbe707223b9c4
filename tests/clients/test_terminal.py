"""The terminal chat against a real connection."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from clients.megacontext_client import ChatResult, MegaContext, Usage
from clients.terminal import Terminal, status_line
from wire_server import CONTEXT, TEXT, Wire


def talk(client: MegaContext, *lines: str) -> str:
    """What a user sees who types ``lines`` and then leaves."""
    typed = iter(lines)

    def read(prompt: str) -> str:
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    console = Console(file=io.StringIO(), width=200)
    Terminal(client, "s-1", console, {"max_tokens": 9}, read).run()
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_turn(client: MegaContext, wire: Wire) -> None:
    """Law: the reply's text is shown as it is, and below it what the model had in view."""
    shown = talk(client, "Hello", "/quit", "never sent")
    assert "".join(TEXT) in shown
    assert "1,000 tokens of history" in shown
    assert "budget 256/512 (50%)" in shown
    assert "raw 25.0%  gisted 0.0%  hidden 75.0%" in shown
    assert [body["messages"][0]["content"] for body in wire.received] == ["Hello"]
    assert wire.received[0]["max_tokens"] == 9


def test_commands(client: MegaContext, wire: Wire, tmp_path: Path) -> None:
    """Law: /focus, /ingest and /rewind do at the server what they say."""
    file = tmp_path / "a book.txt"
    file.write_text("call me Ishmael", encoding="utf-8")
    shown = talk(client, "/focus", f"/ingest {file}", "/rewind 32", "/help")
    assert "40 tokens, 6 of them raw" in shown
    assert "asked" in shown
    assert "3 tokens added, 103 in all" in shown
    assert "32 tokens left" in shown
    assert "/ingest FILE" in shown
    assert wire.received[0] == {"text": "call me Ishmael", "kind": "document"}


def test_a_text_has_a_title(client: MegaContext, wire: Wire, tmp_path: Path) -> None:
    """Law: what stands behind "as" is the title, unless a file is called so; /transcript says what the text is."""
    for name in ("a.txt", "b as c.txt"):
        (tmp_path / name).write_text("call me Ishmael", encoding="utf-8")
    named, odd = f"{tmp_path / 'a.txt'} as Moby Dick", tmp_path / "b as c.txt"
    talk(client, f"/ingest {named}", f"/transcript {named}", f"/transcript {odd}")
    told = [(body.get("title"), body["kind"]) for body in wire.received]
    assert told == [("Moby Dick", "document"), ("Moby Dick", "chat"), (None, "chat")]


def test_mistakes_do_not_end_the_chat(client: MegaContext) -> None:
    """Law: wrong commands, missing files, refusals and broken streams are told, and the chat goes on."""
    lines = ("/nope", "/ingest", "/ingest /no/such/file", "/rewind x", "/rewind 99", "full", "cut", "Hello")
    shown = talk(client, *lines)
    for told in (
        "no such command",
        "which file?",
        "No such file",
        "to which token?",
        "beyond the history",
        "queue full",
    ):
        assert told in shown
    assert f"{TEXT[0]}\nthe connection broke off" in shown
    assert "1,000 tokens of history" in shown


def test_speed_counts_decoded_tokens_only() -> None:
    """Law: tokens/s leaves the first token out, whose time is the prefill's."""
    result = ChatResult("c", "m", "x", "length", Usage(5, 11, 16), CONTEXT, "s-1")
    line = status_line(result, first_token=3.0, decoding=2.0)
    assert "5.0 tokens/s" in line
    assert "first token 3.00 s" in line
    assert "cut at max_tokens" in line

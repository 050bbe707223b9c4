"""The synchronous client against a real connection."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from clients.megacontext_client import APIConnectionError, APIError, MegaContext, StreamEndedError, Usage
from wire_server import CONTEXT, KEY, TEXT, Wire


def test_sessions(client: MegaContext, wire: Wire) -> None:
    """Law: only what was given is sent, answers come back typed, and the list walks through all pages."""
    session = client.create_session(metadata={"who": "Ishmael"}, budget=512)
    assert wire.received == [{"metadata": {"who": "Ishmael"}, "budget": 512}]
    assert (session.id, session.budget, session.metadata) == ("s-new", 512, {"who": "Ishmael"})
    assert [found.id for found in client.sessions(page_size=2)] == wire.sessions
    client.delete("s-0")
    assert client.session("s-1").utilization == 0.125
    with pytest.raises(APIError) as caught:
        client.session("s-0")
    assert (caught.value.status, caught.value.code) == (404, "not_found")


def test_focus_and_rewind(client: MegaContext) -> None:
    """Law: the focus tiles the history; an error names the field at fault."""
    focus = client.focus("s-1")
    assert [(e.level, e.start, e.end, e.cost) for e in focus.entries] == [(1, 0, 32, 1), (0, 32, 40, 8)]
    assert (focus.raw_tokens, focus.swap_rate, focus.entries[1].score) == (6, 0.25, None)
    assert [(e.shown, e.reason) for e in focus.entries] == [(0, None), (6, "asked")]
    assert client.rewind("s-1", 32) == 32
    with pytest.raises(APIError, match="beyond the history") as caught:
        client.rewind("s-1", 41)
    assert caught.value.param == "position"


@pytest.mark.parametrize("kind", ["text", "path", "file", "pieces"])
def test_ingest_streams_every_source(client: MegaContext, wire: Wire, tmp_path: Path, kind: str) -> None:
    """Law: each kind of source arrives whole, in chunks of unknown total length, and progress ends at its size."""
    text = "whale 🐳 " * 30_000
    file = tmp_path / "book.txt"
    file.write_text(text, encoding="utf-8")
    pieces = (text[i : i + 1000] for i in range(0, len(text), 1000))
    sources = {"text": text, "path": file, "file": io.BytesIO(text.encode()), "pieces": pieces}
    seen: list[int] = []
    added = client.ingest("s-1", sources[kind], progress=seen.append)
    assert (added.tokens_added, added.tokens) == (60_000, 60_100)
    assert wire.received[-1]["text"] == text
    assert wire.content_length is None
    assert max(wire.piece_sizes) <= 1 << 18
    assert seen == sorted(seen)
    assert seen[-1] == len(text.encode())


def test_chat(client: MegaContext, wire: Wire) -> None:
    """Law: a plain reply carries text, reason, usage and the truth about its context; options are passed on."""
    result = client.chat("s-1", "Hello", max_tokens=5, temperature=0)
    assert wire.received[-1] == {
        "max_tokens": 5,
        "temperature": 0,
        "model": "tiny",
        "messages": [{"role": "user", "content": "Hello"}],
        "session_id": "s-1",
    }
    assert (result.content, result.finish_reason, result.usage) == ("".join(TEXT), "stop", Usage(7, 3, 10))
    assert (result.x_megacontext, result.session_id) == (CONTEXT, "s-1")


def test_streamed_chat(client: MegaContext, wire: Wire) -> None:
    """Law: the deltas are the text in order, keep-alives leave no trace, and the result is that of a plain reply."""
    stream = client.chat(None, [{"role": "user", "content": "Hello"}], stream=True)
    deltas = list(stream)
    assert "session_id" not in wire.received[-1]
    assert [delta.content for delta in deltas] == [*TEXT, ""]
    assert [delta.finish_reason for delta in deltas] == [None, None, None, "stop"]
    plain = client.chat(None, "Hello")
    assert stream.result == plain


def test_the_result_waits_for_the_end(client: MegaContext) -> None:
    """Law: half a stream is no result."""
    with client.chat(None, "Hello", stream=True) as stream:
        next(stream)
        with pytest.raises(StreamEndedError):
            _ = stream.result


@pytest.mark.parametrize("wanted", ["error event", "error data"])
def test_an_error_in_a_stream(client: MegaContext, wanted: str) -> None:
    """Law: an error ends the stream as an error, after the text before it, however it is marked."""
    texts = []
    with pytest.raises(APIError, match="store down") as caught:
        texts += [delta.content for delta in client.chat(None, wanted, stream=True)]
    assert caught.value.code == "store_error"


@pytest.mark.parametrize("wanted", ["cut", "silent end"])
def test_a_broken_stream(client: MegaContext, wanted: str) -> None:
    """Law: a stream that stops without [DONE] is never taken for a finished reply."""
    stream = client.chat(None, wanted, stream=True)
    assert next(stream).content == TEXT[0]
    with pytest.raises(StreamEndedError):
        list(stream)
    with pytest.raises(StreamEndedError):
        _ = stream.result


def test_leaving_a_stream_ends_it_on_the_server(client: MegaContext, wire: Wire) -> None:
    """Law: closing a stream early drops the connection, so that the server can free the turn."""
    with client.chat(None, "endless", stream=True) as stream:
        next(stream)
    assert wire.cancelled.wait(5)


def test_refusals(client: MegaContext, url: str) -> None:
    """Law: a refusal says its status and code, when to come back, and survives a proxy's page of HTML."""
    with pytest.raises(APIError) as full:
        client.chat(None, "full", stream=True)
    assert (full.value.status, full.value.code, full.value.retry_after) == (429, "queue_full", 2.0)
    with pytest.raises(APIError, match="Bad gateway"):
        client.chat(None, "proxy")
    with MegaContext(url, "wrong") as other, pytest.raises(APIError) as denied:
        other.models()
    assert denied.value.status == 401


def test_no_server(free_port: int) -> None:
    """Law: a server that isn't there is a ConnectionError, not an httpx error."""
    with MegaContext(f"http://127.0.0.1:{free_port}", KEY) as client, pytest.raises(ConnectionError) as caught:
        client.models()
    assert isinstance(caught.value, APIConnectionError)


def test_base_url_of_other_clients(url: str) -> None:
    """Law: the base URL may end in /v1, as OpenAI's client wants it."""
    with MegaContext(f"{url}/v1/", KEY) as client:
        assert [model.id for model in client.models()] == ["tiny"]

"""The asynchronous client against a real connection."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from clients.megacontext_client import APIError, AsyncMegaContext, MegaContext, StreamEndedError
from wire_server import CONTEXT, KEY, TEXT, Wire


@pytest.fixture
async def server(url: str) -> AsyncIterator[AsyncMegaContext]:
    async with AsyncMegaContext(url, KEY, timeout=10) as server:
        yield server


async def test_every_call_answers_as_the_synchronous_one(server: AsyncMegaContext, url: str) -> None:
    """Law: both clients send and read the same."""
    with MegaContext(url, KEY) as other:
        assert await server.models() == other.models()
        assert await server.create_session(system="Be brief.") == other.create_session(system="Be brief.")
        assert [s async for s in server.sessions(2)] == list(other.sessions(2))
        assert await server.session("s-1") == other.session("s-1")
        assert await server.focus("s-1") == other.focus("s-1")
        assert await server.rewind("s-1", 8) == other.rewind("s-1", 8)
        assert await server.chat("s-1", "Hello") == other.chat("s-1", "Hello")
    await server.delete("s-1")
    with pytest.raises(APIError):
        await server.session("s-1")


async def test_ingest(server: AsyncMegaContext, wire: Wire, tmp_path: Path) -> None:
    """Law: files and asynchronous pieces arrive whole."""
    file = tmp_path / "book.txt"
    file.write_text("one two three", encoding="utf-8")

    async def pieces() -> AsyncIterator[str]:
        yield "four "
        yield "five"

    def plain() -> Iterator[str]:
        yield "six"

    seen: list[int] = []
    for source in (file, pieces(), plain()):
        await server.ingest("s-1", source, progress=seen.append)
    assert [body["text"] for body in wire.received] == ["one two three", "four five", "six"]
    assert seen == [13, 5, 9, 3]


async def test_streamed_chat(server: AsyncMegaContext) -> None:
    """Law: deltas in order, then the result."""
    stream = await server.chat("s-1", "Hello", stream=True)
    assert [delta.content async for delta in stream] == [*TEXT, ""]
    assert (stream.result.content, stream.result.x_megacontext) == ("".join(TEXT), CONTEXT)


@pytest.mark.parametrize("wanted", ["cut", "silent end", "error event"])
async def test_broken_streams(server: AsyncMegaContext, wanted: str) -> None:
    """Law: an error or a missing end raises, after the text that came."""
    stream = await server.chat(None, wanted, stream=True)
    assert (await anext(stream)).content == TEXT[0]
    with pytest.raises(APIError if wanted == "error event" else StreamEndedError):
        _ = [delta async for delta in stream]


async def test_leaving_a_stream(server: AsyncMegaContext, wire: Wire) -> None:
    """Law: closing a stream early drops the connection."""
    async with await server.chat(None, "endless", stream=True) as stream:
        await anext(stream)
    assert wire.cancelled.wait(5)

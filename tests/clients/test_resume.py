"""Both clients against a real server and a network that breaks off: each piece comes once, or is told as lost."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from clients.megacontext_client import (
    AsyncMegaContext,
    ChatResult,
    MegaContext,
    StreamEndedError,
    StreamLostError,
)
from clients.megacontext_client import retries as rules
from cutting_proxy import CuttingProxy
from support import ForkedServer, ServerThread, free_port, settings_for, state_in, wait_until, write_model

OPTIONS: dict[str, Any] = {"model": "tiny", "temperature": 0, "ignore_eos": True, "max_tokens": 40}
ASK = "Tell me of the lighthouse 🐳"
RETRIES = 10
Pieces = tuple[list[str], ChatResult]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerThread]:
    with ServerThread(settings_for(model, tmp_path_factory.mktemp("store") / "s.sqlite")) as server:
        yield server


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "FIRST_PAUSE", 0.001)


def synchronous(url: str, session: str, **options: Any) -> Pieces:
    with (
        MegaContext(url, timeout=60, retries=RETRIES) as client,
        client.chat(session, ASK, stream=True, **options) as stream,
    ):
        return [delta.content for delta in stream], stream.result


def asynchronous(url: str, session: str, **options: Any) -> Pieces:
    async def run() -> Pieces:
        async with (
            AsyncMegaContext(url, timeout=60, retries=RETRIES) as client,
            await client.chat(session, ASK, stream=True, **options) as stream,
        ):
            return [delta.content async for delta in stream], stream.result

    return asyncio.run(run())


BOTH = pytest.mark.parametrize("chat", [synchronous, asynchronous])
Chat = Callable[..., Pieces]


def content(client: MegaContext, session: str) -> list[str | None]:
    return [message.content for message in client.messages(session)]


@BOTH
def test_a_network_that_breaks_off_anywhere_changes_nothing(server: ServerThread, chat: Chat) -> None:
    """Law: a connection that breaks at random bytes, within events and characters too, gives the caller the pieces of
    an uninterrupted reply, byte for byte, each once; and the history has the turn once."""
    rng = random.Random(7)
    with MegaContext(server.address, timeout=60) as client:
        pieces, whole = chat(server.address, client.create_session().id, **OPTIONS)
        for longest in (1500, 5000):
            session = client.create_session().id
            port = int(server.address.rpartition(":")[2])
            with CuttingProxy(port, lambda longest=longest: rng.randrange(1, longest)) as proxy:  # type: ignore[misc]
                told, result = chat(proxy.address, session, **OPTIONS)
            assert proxy.cuts >= 2
            assert "".join(told).encode() == whole.content.encode()
            assert (told, result.content, result.finish_reason) == (pieces, whole.content, whole.finish_reason)
            assert result.usage == whole.usage
            assert content(client, session) == [ASK, whole.content]


@BOTH
def test_a_network_that_brings_nothing_is_given_up(server: ServerThread, chat: Chat) -> None:
    """Law: attempts that bring nothing new are bounded; then the stream ends in an error, not in half a reply."""
    with MegaContext(server.address, timeout=60) as client:
        session = client.create_session().id
        port = int(server.address.rpartition(":")[2])
        for nothing in (100, 500):  # within the headers; within the first event
            budget = iter([1200])
            with CuttingProxy(port, lambda: next(budget, nothing)) as proxy, pytest.raises(StreamEndedError):  # noqa: B023
                chat(proxy.address, session, **OPTIONS)
            assert RETRIES < proxy.cuts <= RETRIES + 3 + 2  # a restart is waited for


def test_leaving_a_stream_ends_its_turn_at_once(server: ServerThread) -> None:
    """Law: a client that leaves early says so: its turn ends though the server would wait for it, without a trace."""
    with MegaContext(server.address, timeout=60) as client:
        session = client.create_session().id
        with client.chat(session, ASK, stream=True, **{**OPTIONS, "max_tokens": 10**6}) as stream:
            next(stream)
        wait_until(lambda: not state_in(server).book._running, 10)
        assert client.session(session).tokens == 0


@pytest.mark.slow
def test_clients_go_on_through_kill_nine(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: a client whose connection broke while the server was killed and came back has all of a reply that was
    stored; of one that was under way it is told that it is lost, and nothing of that is in the history."""
    monkeypatch.setattr(rules, "FIRST_PAUSE", 0.1)
    port, store, kinds = free_port(), tmp_path / "s.sqlite", {"whole": 0, "lost": 0}
    cuts = iter([1500] * 100)
    server = ForkedServer(model, store, use_port=port).__enter__()
    with CuttingProxy(port, lambda: next(cuts)) as proxy, ThreadPoolExecutor(1) as pool:
        for number in range(8):
            with MegaContext(server.address, timeout=60) as client:
                session, before = client.create_session().id, proxy.cuts
                limit = 40 if number % 2 else 600
                chat = (synchronous, asynchronous)[number // 2 % 2]
                turn = pool.submit(chat, proxy.address, session, **{**OPTIONS, "max_tokens": limit})
                wait_until(lambda before=before: proxy.cuts > before)  # type: ignore[misc]
                if number % 2:
                    wait_until(lambda: client.session(session).tokens > limit)  # noqa: B023
            server.stop()
            server = ForkedServer(model, store, use_port=port).__enter__()
            with MegaContext(server.address, timeout=60) as client:
                try:
                    told, result = turn.result()
                except StreamLostError:
                    kinds["lost"] += 1
                    assert client.session(session).tokens == 0
                else:
                    kinds["whole"] += 1
                    assert content(client, session) == [ASK, "".join(told)] == [ASK, result.content]
    server.stop()
    assert kinds["whole"] >= 4
    assert kinds["lost"] >= 1

"""A store that is full, or stands still: it is told, what needs no room goes on, and nobody has to restart anything."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from redis_server import RedisServer
from server.telemetry import metrics
from support import gauge, running, settings_for, wait_until

TEXT = "It was the best of times, it was the worst of times. " * 40
KEPT = {"content-type": "text/plain"}


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "STORE_PERIOD", 0.2)


def turn(http: httpx.Client, session: str, question: str, **others: Any) -> httpx.Response:
    messages = [{"role": "user", "content": question}]
    body = {"model": "tiny", "messages": messages, "session_id": session, "max_tokens": 8, "ignore_eos": True}
    return http.post("/v1/chat/completions", json={**body, **others})


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def questions(http: httpx.Client, session: str) -> list[str]:
    found = http.get(f"/v1/sessions/{session}/messages", params={"limit": 1000})
    assert found.status_code == 200, found.text
    return [one["content"] for one in found.json()["data"] if one["role"] == "user"]


def check_full(address: str, fill: Callable[[], None], empty: Callable[[], None], reason: str) -> None:
    """What a server over a store that gets full promises, from before until there is room again."""
    with httpx.Client(base_url=address, timeout=60) as http:
        # Two are in memory, the others are not.
        sessions = [http.post("/v1/sessions", json={}).json()["id"] for _ in range(4)]
        for session in sessions:
            assert http.post(f"/v1/sessions/{session}/ingest", content=TEXT, headers=KEPT).status_code == 200
            assert turn(http, session, "one").status_code == 200
        hot, cold, gone, gone_cold = sessions[3], sessions[0], sessions[2], sessions[1]
        fill()
        for session in (hot, hot, cold):
            assert code(turn(http, session, "two")) == (503, "store_full")
        streamed = turn(http, hot, "two", stream=True).text
        assert "store_full" in streamed
        assert "[DONE]" not in streamed
        ready = http.get("/ready")
        assert (ready.status_code, ready.json()["status"]) == (503, "not ready")
        assert reason in ready.json()["reasons"][0]
        wait_until(lambda: gauge(address, "megacontext_store_up") == 0)
        for session in (hot, cold):
            assert questions(http, session) == ["one"]
            assert http.get(f"/v1/sessions/{session}/export").status_code == 200
            assert http.get(f"/v1/sessions/{session}/focus").status_code == 200
        assert {one["id"] for one in http.get("/v1/sessions").json()["data"]} == set(sessions)
        for session in (gone, gone_cold):
            deleted = http.delete(f"/v1/sessions/{session}")
            assert deleted.status_code == 200, deleted.text
            assert http.get(f"/v1/sessions/{session}").status_code == 404
        empty()
        wait_until(lambda: http.get("/ready").json()["status"] == "ready")
        for session in (hot, cold):
            assert turn(http, session, "three").status_code == 200
            assert questions(http, session) == ["one", "three"]
        wait_until(lambda: gauge(address, "megacontext_store_up") == 1)


def test_a_redis_at_its_maxmemory(model_dir: Path) -> None:
    """Law: while Redis is full turns end in 503 store_full, /ready says why, reads and deletions go on; with room again
    all goes on without a restart, and nothing that was acknowledged is lost."""
    redis = RedisServer()
    try:
        with (
            running(settings_for(model_dir, redis.url, max_resident_sessions=2)) as address,
            redis.client() as client,
        ):
            check_full(
                address,
                lambda: client.config_set("maxmemory", 1),
                lambda: client.config_set("maxmemory", 0),
                "full (maxmemory)",
            )
    finally:
        redis.stop()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 16 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "none", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_under_sqlite(model_dir: Path, small_disk: Path) -> None:
    """Law: the same of a SQLite file whose disk is full."""
    ballast = small_disk / "ballast"

    def fill() -> None:
        with ballast.open("wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError:
                pass

    with running(settings_for(model_dir, small_disk / "s.sqlite", max_resident_sessions=2)) as address:
        check_full(address, fill, ballast.unlink, "disk is full")


@pytest.mark.parametrize(
    ("seconds", "query"),
    [(3.0, "?deadline=1&patience=0.5&socket_timeout=0.3"), pytest.param(30.0, "", marks=pytest.mark.slow)],
)
def test_a_redis_that_stands_still(model_dir: Path, seconds: float, query: str) -> None:
    """Law: while Redis stands still for longer than turns wait, they end in store_down and /ready says why; afterwards
    all goes on without a restart, every acknowledged turn is there once, and one whose answer was lost once or never,
    whole, however often its write was repeated."""
    redis = RedisServer(fsync="always")
    settings = settings_for(model_dir, f"{redis.url}{query}", max_sessions=4, max_queue=4)
    try:
        with running(settings) as address, httpx.Client(base_url=address, timeout=90) as http:
            sessions = [http.post("/v1/sessions", json={}).json()["id"] for _ in range(4)]
            for session in sessions:
                assert turn(http, session, "one").status_code == 200
            redis.hang()
            until = threading.Timer(seconds, redis.hang, (False,))
            until.start()
            lost: list[tuple[int, str]] = []
            threads = [
                threading.Thread(target=lambda name=name: lost.append(code(turn(http, name, "two"))))
                for name in sessions[:3]
            ]
            for thread in threads:
                thread.start()
            wait_until(lambda: http.get("/ready").json()["status"] == "degraded")
            ready = http.get("/ready")
            assert ready.status_code == 200
            assert "can't be reached" in ready.json()["reasons"][0]
            wait_until(lambda: gauge(address, "megacontext_store_up") == 0)
            for thread in threads:
                thread.join()
            assert lost == [(503, "store_down")] * 3
            assert until.is_alive()
            until.join()
            wait_until(lambda: http.get("/ready").json()["status"] == "ready")
            for session in sessions:
                assert turn(http, session, "three").status_code == 200
                told = questions(http, session)
                assert told in (["one", "three"], ["one", "two", "three"])
                assert session != sessions[3] or told == ["one", "three"]
            wait_until(lambda: gauge(address, "megacontext_store_up") == 1)
    finally:
        redis.hang(False)
        redis.stop()

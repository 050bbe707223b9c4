"""Redis as compose starts it: the same command line, on a free port and in a folder of the test."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from deploy_files import ROOT, compose
from mc_core.errors import ConfigError
from server.settings import Settings
from server.stores import open_store
from support import free_port, running, small, wait_until

SERVICE = compose()["services"]["redis"]
PASSWORD = "correct0horse"
FLAGS = {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction"}

pytestmark = pytest.mark.skipif(
    not (shutil.which("redis-server") and shutil.which("redis-cli")), reason="redis-server isn't installed"
)


class Redis:
    """A running redis-server and how to ask it."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process, self.port = process, port

    def ask(self, *words: str, password: str = PASSWORD, env: dict[str, str] | None = None) -> str:
        """What redis-cli prints."""
        command = ["redis-cli", "-p", str(self.port), *words]
        auth = {"REDISCLI_AUTH": password} if password else {}
        done = subprocess.run(command, env=auth | (env or {}), capture_output=True, text=True, check=False)
        return (done.stdout + done.stderr).strip()

    def answers(self) -> bool:
        return "PONG" in self.ask("ping")


@contextmanager
def compose_redis(data: Path, memory: str = "64mb") -> Iterator[Redis]:
    """The service's own command with its environment; only the folder and the port are the test's."""
    port = free_port()
    shell, options, script = SERVICE["command"]
    script = script.replace("$$", "$").replace("--dir /data", f"--dir {data} --port {port} --bind 127.0.0.1")
    env = {"PATH": "/usr/bin:/bin", "REDIS_PASSWORD": PASSWORD, "REDIS_MAXMEMORY": memory}
    with _running([shell, options, script], port, env) as redis:
        yield redis


@contextmanager
def _running(command: list[str], port: int, env: dict[str, str] | None = None) -> Iterator[Redis]:
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
    redis = Redis(process, port)
    try:
        wait_until(redis.answers)
        yield redis
    finally:
        process.kill()
        process.wait()


def test_redis_runs_as_compose_says(tmp_path: Path) -> None:
    """Law: the flags are those that keep sessions, the password is asked for, and no process list shows it."""
    assert set(SERVICE["environment"]) == {"REDIS_PASSWORD", "REDIS_MAXMEMORY"}
    with compose_redis(tmp_path) as redis:
        for name, value in FLAGS.items():
            assert redis.ask("config", "get", name).splitlines() == [name, value]
        assert redis.ask("config", "get", "maxmemory").splitlines()[1] == str(64 << 20)
        assert "NOAUTH" in redis.ask("ping", password="")
        assert PASSWORD not in Path(f"/proc/{redis.process.pid}/cmdline").read_text()
        assert (tmp_path / "appendonlydir").is_dir()


def test_redis_health_check_tells_truth(tmp_path: Path) -> None:
    """Law: the service's own check passes on a Redis that answers and fails on one with another password."""
    kind, check = SERVICE["healthcheck"]["test"]
    assert kind == "CMD-SHELL"
    with compose_redis(tmp_path) as redis:
        command = check.replace("$$", "$").replace("redis-cli", f"redis-cli -p {redis.port}")
        for password, status in ((PASSWORD, 0), ("wrong", 1)):
            env = {"PATH": "/usr/bin:/bin", "REDIS_PASSWORD": password}
            assert subprocess.run(["sh", "-c", command], env=env, capture_output=True).returncode == status


def test_redis_survives_a_kill(tmp_path: Path) -> None:
    """Law: what Redis acknowledged is there after its process was killed."""
    with compose_redis(tmp_path) as redis:
        assert redis.ask("set", "session", "kept") == "OK"
    with compose_redis(tmp_path) as redis:
        assert redis.ask("get", "session") == "kept"


def test_full_redis_refuses_and_forgets_nothing(tmp_path: Path) -> None:
    """Law: at its limit of memory Redis refuses writes; nothing that it holds is evicted."""
    with compose_redis(tmp_path, memory="4mb") as redis:
        answers = [redis.ask("set", f"span:{i}", "x" * 100_000) for i in range(60)]
        kept = answers.count("OK")
        assert 0 < kept < len(answers)
        assert answers[-1].startswith("OOM")
        assert redis.ask("dbsize") == str(kept)


def test_redis_backup_comes_back(tmp_path: Path) -> None:
    """Law: the procedure of docs/operations.md brings a snapshot back into a Redis that keeps an AOF."""
    for name in ("first", "restored"):
        (tmp_path / name).mkdir()
    with compose_redis(tmp_path / "first") as redis:
        redis.ask("set", "session", "kept")
        redis.ask("--rdb", str(tmp_path / "backup.rdb"))
    found = re.search(r"redis sh -euc '\n(.+?)'\n", (ROOT / "docs" / "operations.md").read_text("utf-8"), re.DOTALL)
    assert found
    port = str(free_port())
    script = found[1].replace("/data", str(tmp_path / "restored")).replace("/backup.rdb", str(tmp_path / "backup.rdb"))
    script = script.replace("redis-cli", f"redis-cli -p {port}").replace("redis-server", f"redis-server --port {port}")
    subprocess.run(["sh", "-euc", script], check=True, capture_output=True, timeout=30)
    with compose_redis(tmp_path / "restored") as redis:
        assert redis.ask("get", "session") == "kept"


def test_server_keeps_sessions_in_it(model: Path, tmp_path: Path) -> None:
    """Law: with the store's URL as compose gives it, a session outlives the server and Redis."""
    url = compose()["services"]["megacontext-cpu"]["environment"]["MEGACONTEXT_STORE"]
    url = re.sub(r"\$\{REDIS_PASSWORD[^}]*\}", PASSWORD, url)
    with compose_redis(tmp_path) as redis:
        store = url.replace("@redis:6379", f"@127.0.0.1:{redis.port}")
        try:
            open_store(store).close()
        except ConfigError as error:
            pytest.skip(f"no Redis store in this version: {error}")
        with running(_settings(model, store)) as address:
            session = httpx.post(f"{address}/v1/sessions", json={"system": "Remember."}).raise_for_status().json()["id"]
            turn = {"model": "tiny", "session_id": session, "messages": [{"role": "user", "content": "Hello"}]}
            answer = httpx.post(f"{address}/v1/chat/completions", json=turn | {"max_tokens": 4}, timeout=60)
            tokens = answer.raise_for_status().json()["x_megacontext"]["tokens"]
    with compose_redis(tmp_path) as redis:
        store = url.replace("@redis:6379", f"@127.0.0.1:{redis.port}")
        with running(_settings(model, store)) as address:
            assert httpx.get(f"{address}/v1/sessions/{session}").raise_for_status().json()["tokens"] >= tokens > 0


def _settings(model: Path, store: str) -> Settings:
    return Settings(**{**small(model, Path()), "store": store})  # type: ignore[arg-type]

"""Real processes for benchmarks: a server of ours on a free port, and a redis-server over a scratch folder."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import redis
from prometheus_client.parser import text_string_to_metric_families


@contextmanager
def process(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A Python module as a process, without our own settings for telemetry and servers."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OTEL_", "MEGACONTEXT_"))}
    command = [sys.executable, "-m", *arguments]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    running = subprocess.Popen(command, env={**kept, **environment}, text=True, **pipes)
    try:
        yield running
    finally:
        running.terminate()
        running.communicate()


@contextmanager
def served(*flags: str, **environment: str) -> Iterator[tuple[httpx.Client, psutil.Process]]:
    """``megacontext serve`` on a free port, ready -> a client with its address, and the process."""
    port = free_port()
    with (
        process("server.cli", "serve", "--port", str(port), *flags, **environment) as running,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=httpx.Timeout(3600.0)) as client,
    ):
        wait_until(lambda: client.get("/ready").status_code == 200, "the server")
        yield client, psutil.Process(running.pid)


def metric(client: httpx.Client, name: str, **labels: str) -> float:
    """One sample of /metrics, 0 if it is not there yet."""
    return next((value for found, value in samples(client, name) if labels.items() <= found.items()), 0.0)


def samples(client: httpx.Client, name: str) -> Iterator[tuple[dict[str, str], float]]:
    """All samples of a name in /metrics -> (labels, value)."""
    text = client.get("/metrics").raise_for_status().text
    for family in text_string_to_metric_families(text):
        yield from ((sample.labels, sample.value) for sample in family.samples if sample.name == name)


@contextmanager
def redis_server(folder: Path) -> Iterator[redis.Redis]:
    """A redis-server with an append-only file, as docker-compose.yml runs it."""
    binary, port = shutil.which("redis-server"), free_port()
    if binary is None:
        raise SystemExit("redis-server is not installed")
    flags = {"port": str(port), "bind": "127.0.0.1", "dir": str(folder), "save": ""}
    flags |= {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction"}
    arguments = [part for name, value in flags.items() for part in (f"--{name}", value)]
    running = subprocess.Popen([binary, *arguments], stdout=subprocess.DEVNULL)
    try:
        with redis.Redis(port=port) as client:
            wait_until(lambda: bool(client.ping()), "redis-server")
            yield client
    finally:
        running.terminate()
        running.wait()


def wait_until(ready: Callable[[], bool], what: str, seconds: float = 120.0) -> None:
    """Ask again and again; a refused connection counts as no."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if ready():
                return
        except (httpx.TransportError, redis.ConnectionError):
            pass
        assert time.monotonic() < deadline, f"{what} did not start"
        time.sleep(0.1)


def words_in(line: str) -> str:
    """What a line of a chat's stream adds to the reply; the first chunk, which comes before any token, adds nothing."""
    choices = json.loads(line[6:]).get("choices") if line.startswith("data: {") else None
    return str(choices[0]["delta"].get("content") or "") if choices else ""


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

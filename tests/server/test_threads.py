"""Who computes on the CPU: torch's threads are the engine's alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mc_core.models.threads import aside

BUNDLE = Path(__file__).parents[2] / "models" / "megacontext-tiny"
SERVE = """
import os, sys, threading, time
import torch
from fastapi.testclient import TestClient
from server.app import build_app
from server.settings import Settings

def native():
    # Threads that are not Python's: of teams, and of libraries that keep theirs for ever.
    return len(os.listdir("/proc/self/task")) - threading.active_count()

def serve_one(then):
    with TestClient(build_app(settings), base_url="http://127.0.0.1") as client:
        found = client.get("/v1/sessions").json()["data"]
        name = found[0]["id"] if found else client.post("/v1/sessions", json={}).json()["id"]
        body = {"model": "tiny", "messages": [{"role": "user", "content": "a word " * 300}], "max_tokens": 2}
        client.post("/v1/chat/completions", json=body | {"session_id": name}).raise_for_status()
        then()

def expect(count):
    until = time.monotonic() + 20
    while native() != count and time.monotonic() < until:
        time.sleep(0.02)
    assert native() == count, f"{native()} threads, expected {count}"

settings = Settings(model=sys.argv[1], model_name="tiny", store=sys.argv[2], threads=2, weights="float32", budget=512)
serve_one(lambda: None)
kept = min(native() for _ in range(50) if not time.sleep(0.02))
serve_one(lambda: expect(kept + 1))  # the engine's team of two is itself and one more
torch.randn(512, 512) @ torch.randn(512, 512)
expect(kept + 1)  # and here it is this thread's
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists() or os.cpu_count() == 1, reason="counts threads of two cores")
def test_the_engine_alone_has_a_team_of_threads(tmp_path):
    """Loading a model and restoring a session leave no OpenMP team: two of them slow each other's every step."""
    command = [sys.executable, "-c", SERVE, str(BUNDLE), f"sqlite:///{tmp_path / 's.sqlite'}"]
    # Passive: where the cores are busy, a team that spins takes its time from what it waits for.
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_computes_aside_raises_where_it_was_called():
    """An error of work that is done aside is its caller's."""
    with pytest.raises(ZeroDivisionError):
        aside(lambda: 1 // 0)

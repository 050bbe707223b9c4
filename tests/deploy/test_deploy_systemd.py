"""The systemd unit, judged by systemd's own tools where they are installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from deploy_files import DEPLOY, KNOWN_SETTINGS
from support import free_port, small, wait_until

UNIT = DEPLOY / "systemd" / "megacontext.service"
EXAMPLE = DEPLOY / "systemd" / "megacontext.env.example"
EXPOSED_AT_MOST = 14
"""Tenths, as systemd counts: 10 means nearly nothing, 100 all. The unit has 14, and no directive of it weighs less."""

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze isn't installed")


@needs_systemd
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    """Law: systemd knows every directive of the unit; only the program's path is this machine's."""
    text = UNIT.read_text("utf-8").replace("/opt/megacontext/.venv/bin/megacontext", "/bin/true")
    assert "/bin/true serve" in text
    (tmp_path / UNIT.name).write_text(text)
    done = _analyze("verify", "--man=no", tmp_path / UNIT.name)
    assert (done.returncode, done.stderr) == (0, "")


@needs_systemd
def test_the_unit_is_hardened() -> None:
    """Law: systemd's review finds little exposure; a directive that is dropped later shows here."""
    done = _analyze("security", "--offline=true", f"--threshold={EXPOSED_AT_MOST}", UNIT)
    assert done.returncode == 0, done.stdout[-200:]


@needs_systemd
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace isn't installed")
def test_the_unit_allows_every_system_call(model: Path, tmp_path: Path) -> None:
    """Law: a server that starts, serves a turn, stores it and drains makes no system call that the unit denies."""
    trace = tmp_path / "trace"
    port = free_port()
    settings = small(model, tmp_path / "store.sqlite", port=port)
    flags = [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    server = [sys.executable, "-m", "server.cli", "serve", *flags]
    process = subprocess.Popen(["strace", "-f", "-qq", "-c", "-U", "name", "-o", str(trace), *server])
    try:
        wait_until(lambda: _ready(port) or process.poll() is not None, 120)
        if process.poll() is not None:
            pytest.skip("strace may not trace here")
        turn = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}
        httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=turn, timeout=120).raise_for_status()
        (traced,) = psutil.Process(process.pid).children()
        traced.terminate()
        process.wait(60)
    finally:
        process.kill()
        process.wait()
    used = {word for word in trace.read_text().split() if word.isidentifier()} - {"syscall", "total"}
    # SQLite gives files to their folder's owner, when it runs as root.
    used -= {"fchown"} if os.geteuid() == 0 else set()
    assert {"openat", "bind"} <= used
    allowed = _calls("@default")
    for line in re.findall(r"^SystemCallFilter=(.+)$", UNIT.read_text("utf-8"), re.MULTILINE):
        named = set().union(*(_calls(word) if word.startswith("@") else {word} for word in line.strip("~").split()))
        allowed = allowed - named if line.startswith("~") else allowed | named
    assert used <= allowed


def _calls(group: str) -> set[str]:
    """System calls of a group, as systemd counts them."""
    lines = _analyze("syscall-filter", group).stdout.splitlines()[1:]
    words = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
    return set().union(*(_calls(word) if word.startswith("@") else {word} for word in words))


def _ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/ready").status_code == 200
    except httpx.TransportError:
        return False


def test_the_drain_fits_before_the_kill() -> None:
    """Law: systemd waits longer than the server drains, and the store lies where the unit may write."""
    text, example = UNIT.read_text("utf-8"), dict(re.findall(r"^#?(\w+)=(.*)$", EXAMPLE.read_text("utf-8"), re.M))
    timeout = re.search(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)
    assert timeout
    assert int(timeout[1]) >= int(example["MEGACONTEXT_DRAIN_SECONDS"]) + 5
    state = re.search(r"^StateDirectory=(\w+)$", text, re.MULTILINE)
    assert state
    assert example["MEGACONTEXT_STORE"].startswith(f"sqlite:////var/lib/{state[1]}/")
    assert {name for name in example if name.startswith("MEGACONTEXT_")} <= KNOWN_SETTINGS
    assert example["MEGACONTEXT_API_KEY"] == ""


def _analyze(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *map(str, arguments)], capture_output=True, text=True, check=False)

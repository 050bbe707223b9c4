"""The systemd unit, judged by systemd's own tools where they are installed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from deploy_files import DEPLOY, KNOWN_SETTINGS

UNIT = DEPLOY / "systemd" / "megacontext.service"
EXAMPLE = DEPLOY / "systemd" / "megacontext.env.example"
EXPOSED_AT_MOST = 20
"""Tenths, as systemd counts: below 20 is its best grade but one."""

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

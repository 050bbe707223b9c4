"""What a fresh machine runs: make targets and pins."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("target", ["serve", "chat", "test", "test-slow", "lint", "format", "bench", "docs"])
def test_make_targets_set_up_the_environment(target: str, tmp_path: Path) -> None:
    """Law: on a fresh checkout every target first makes the environment, from the pins."""
    plan = subprocess.run(
        ["make", "-n", "-f", ROOT / "Makefile", target],
        cwd=_fresh(tmp_path),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    install = plan.index("install --disable-pip-version-check -c constraints.txt -e '.[dev]'")
    assert plan.index("-m venv .venv") < install
    assert len(plan[install:].strip().splitlines()) > 1


INSTALLER = """#!/bin/sh
case "$*" in
    "-m venv "*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
    *"$BROKEN"*) echo "these versions conflict"; echo "ERROR: cannot install" >&2; exit 1 ;;
    *) echo "Collecting it all"; echo "WARNING: with care" >&2 ;;
esac
"""
"""In place of Python, to install with. BROKEN: what cannot be."""


def test_an_installation_says_little_but_why_it_failed(tmp_path: Path) -> None:
    """Law: a fresh checkout tells in one line that all is being installed; what fails tells why, and is tried anew."""
    folder, python = _fresh(tmp_path), tmp_path / "python"
    python.write_text(INSTALLER, encoding="utf-8")
    python.chmod(0o755)

    def install(broken: str) -> subprocess.CompletedProcess[str]:
        command = ["make", "--no-print-directory", "-f", ROOT / "Makefile", f"PYTHON={python}", ".venv/.installed"]
        return subprocess.run(
            command, cwd=folder, env={**os.environ, "BROKEN": broken}, capture_output=True, text=True, check=False
        )

    failed = install("constraints.txt")
    assert failed.returncode != 0
    assert "ERROR: cannot install" in failed.stderr
    assert "these versions conflict" in failed.stderr
    done = install("nothing of it")
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = done.stdout.splitlines()
    assert line.startswith("installing the project and what it needs")


def test_benchmarks_of_make_exist() -> None:
    """Law: make bench names modules that are there."""
    named = re.search(r"^BENCHES \?= (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert named
    assert all((ROOT / "bench" / f"{name}.py").is_file() for name in named[1].split())


def test_ci_fails_when_a_step_fails(tmp_path: Path) -> None:
    """Law: .ci/run runs lint and test, in that order, and stops with a failure at the first one."""
    folder = _fresh(tmp_path)
    (folder / ".ci").mkdir()
    script = folder / ".ci" / "run"
    script.write_bytes((ROOT / ".ci" / "run").read_bytes())
    script.chmod((ROOT / ".ci" / "run").stat().st_mode)
    for failing, ran in (("none", "lint test"), ("lint", "lint"), ("test", "lint test")):
        (folder / "Makefile").write_text(
            f"lint test:\n\t@echo $@ >> ran\n\t@test $@ != {failing}\n.PHONY: lint test\n", encoding="utf-8"
        )
        (folder / "ran").unlink(missing_ok=True)
        done = subprocess.run([script], cwd=tmp_path, capture_output=True, check=False)
        assert (done.returncode == 0) == (failing == "none")
        assert (folder / "ran").read_text().split() == ran.split()


def test_pins_satisfy_the_project() -> None:
    """Law: every direct dependency is pinned, to a version in its range; no pin names where it comes from."""
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    pinned = {canonicalize_name(name): Version(version) for name, version in pins.items()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for text in project["dependencies"] + project["optional-dependencies"]["dev"]:
        requirement = Requirement(text)
        assert pinned[canonicalize_name(requirement.name)] in requirement.specifier


def _fresh(folder: Path) -> Path:
    """A checkout's set-up files without an environment."""
    fresh = folder / "checkout"
    fresh.mkdir()
    for name in ("pyproject.toml", "constraints.txt"):
        (fresh / name).write_bytes((ROOT / name).read_bytes())
    return fresh

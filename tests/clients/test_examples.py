"""The examples against the real server."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from clients.megacontext_client import MegaContext
from support import running, settings_for, write_model

FOLDER = Path(__file__).parents[2] / "clients" / "examples"
COMMANDS = {
    "curl.sh": ["sh"],
    "openai_package.py": [sys.executable],
    "async_client.py": [sys.executable],
    "fetch.mjs": ["node"],
}
KEY = "sesame"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("examples")
    with running(settings_for(write_model(folder / "tiny"), folder / "store.sqlite", api_key=[KEY])) as address:
        yield address


def run(name: str, address: str, key: str) -> subprocess.CompletedProcess[str]:
    """Run an example as a user does, in a clean environment."""
    program, *_ = COMMANDS[name]
    if shutil.which(program) is None or (name == "curl.sh" and shutil.which("curl") is None):
        pytest.skip(f"{name} needs a program that is not installed")
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MEGACONTEXT_") and "proxy" not in k.lower()}
    given = {"MEGACONTEXT_URL": address, "MEGACONTEXT_API_KEY": key, "PYTHONPATH": str(FOLDER.parent)}
    return subprocess.run(
        [*COMMANDS[name], str(FOLDER / name)], env={**kept, **given}, capture_output=True, text=True, timeout=60
    )


def test_no_example_is_left_out() -> None:
    """Law: every file among the examples is run by a test."""
    assert {file.name for file in FOLDER.iterdir() if file.is_file()} == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_an_example_works(name: str, address: str) -> None:
    """Law: each example talks to a server with a key to the end of its program, and leaves no session of its own."""
    done = run(name, address, KEY)
    assert done.returncode == 0, done.stdout + done.stderr
    with MegaContext(address, KEY) as server:
        assert [session.id for session in server.sessions() if not session.raw["implicit"]] == []
    CHECKS[name](done.stdout)


@pytest.mark.parametrize("name", COMMANDS)
def test_an_example_says_what_is_wrong(name: str, address: str) -> None:
    """Law: with a wrong key an example fails, visibly."""
    done = run(name, address, "wrong")
    assert done.returncode != 0
    assert re.search("401|key", done.stdout + done.stderr)


def curl(said: str) -> None:
    lines = said.splitlines()
    assert json.loads(next(line for line in lines if "tokens_added" in line))["tokens_added"] > 0
    assert "data: [DONE]" in lines
    assert json.loads(next(line for line in lines if '"entries"' in line))["entries"]
    assert json.loads(lines[-1])["deleted"] is True


def openai_package(said: str) -> None:
    counts = re.findall(r"^(\d+) tokens, (\d+) of them known before$", said, re.MULTILINE)
    assert len(counts) == 1
    assert int(counts[0][0]) > int(counts[0][1]) > 0


def async_client(said: str) -> None:
    assert re.search(r"^north: [1-9]\d* tokens read, [1-9]\d* of [1-9]\d* in view$", said, re.MULTILINE)
    assert re.search(r"^south: [1-9]", said, re.MULTILINE)


def fetch(said: str) -> None:
    assert re.search(r", [1-9]\d* tokens read$", said, re.MULTILINE)
    assert re.search(r"^[1-9]\d* of [1-9]\d* tokens in view$", said, re.MULTILINE)


CHECKS = {"curl.sh": curl, "openai_package.py": openai_package, "async_client.py": async_client, "fetch.mjs": fetch}

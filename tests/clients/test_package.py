"""The client as a package of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

from support import running, settings_for, write_model

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "clients"
KEY = "sesame"
LIMIT_BYTES = 10_000_000
USE = """
import json, sys
from megacontext_client import MegaContext
with MegaContext(sys.argv[1], sys.argv[2]) as server:
    session = server.create_session(system="Be brief.")
    server.ingest(session.id, "call me Ishmael")
    with server.chat(session.id, "Hello", stream=True, max_tokens=5, ignore_eos=True) as stream:
        text = "".join(delta.content for delta in stream)
    print(json.dumps([text, stream.result.content, stream.result.usage.completion_tokens]))
"""


def projects() -> tuple[dict[str, object], dict[str, object]]:
    """The client's project table and the whole project's."""
    one, other = (tomllib.loads((folder / "pyproject.toml").read_text())["project"] for folder in (FOLDER, ROOT))
    return one, other


def test_it_needs_httpx_alone() -> None:
    """Law: the package depends on httpx and nothing else, in the version that the whole project states."""
    client, whole = projects()
    assert client["dependencies"] == [text for text in whole["dependencies"] if text.startswith("httpx")]
    assert (client["version"], client["requires-python"]) == (whole["version"], whole["requires-python"])


def test_it_imports_nothing_of_the_project() -> None:
    """Law: imported under its own name, the package loads no other part of the project and no heavy library."""
    code = "import json, sys, megacontext_client; print(json.dumps(sorted({m.partition('.')[0] for m in sys.modules})))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=FOLDER, capture_output=True, text=True, check=True, timeout=60
    )
    loaded = set(json.loads(done.stdout))
    assert "megacontext_client" in loaded
    # Nothing is said of rich and click: httpx itself loads them where they are installed, for its own command.
    assert not loaded & {"clients", "server", "mc_core", "torch", "numpy", "pydantic", "fastapi"}


@pytest.mark.slow
def test_it_installs_into_an_empty_environment(tmp_path: Path) -> None:
    """Law: from the folder alone it installs, works against a server, and takes less than 10 MB with all it needs."""
    folder = tmp_path / "clients"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    # Without pip, so that what lies in site-packages afterwards is the client and what it needs.
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    subprocess.run([*pip, "install", "--quiet", str(folder)], check=True, timeout=280)
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    settings = settings_for(write_model(tmp_path / "tiny"), tmp_path / "store.sqlite", api_key=[KEY])
    with running(settings) as url:
        command = [python, "-c", USE, url, KEY]
        done = subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    streamed, whole, tokens = json.loads(done.stdout)
    assert (streamed, tokens) == (whole, 5)
    site = next((tmp_path / "venv").glob("lib/python3*/site-packages"))
    size = sum(file.stat().st_size for file in site.rglob("*") if file.is_file())
    print(f"site-packages: {size / 1e6:.1f} MB")
    assert size < LIMIT_BYTES
    assert not [name for name in ("torch", "numpy", "pydantic", "fastapi") if (site / name).exists()]

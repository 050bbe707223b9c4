"""docs/operations.md says what is: settings, reasons, alerts, panels, sizes, and backups that come back."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from bench.sizes import history_bytes, pool_formula, slab_bytes, word_index_bytes
from deploy_files import ROOT, dashboard_queries, rules
from mc_core.bundle.bundle import load_bundle
from mc_core.engine.core import build_core
from mc_core.engine.engine_config import EngineConfig
from mc_core.focus.focus_config import FocusConfig
from mc_core.models.decoder_config import DecoderConfig
from mc_core.session.factory import SessionFactory
from server.cli import app
from server.settings import Settings
from server.stores import open_store
from support import running, settings_for

DOC = ROOT / "docs" / "operations.md"
TEXT = DOC.read_text("utf-8")


def first_cells(heading: str) -> list[str]:
    """First cells of the rows of the tables of one chapter."""
    chapter = TEXT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return [row.split("|")[1].strip() for row in chapter.splitlines() if row.startswith("| ")]


def test_settings_are_up_to_date(tmp_path: Path) -> None:
    """Law: the table in the file is the one that `make docs` writes; each setting has its row."""
    copy = tmp_path / "operations.md"
    copy.write_text(TEXT, "utf-8")
    done = CliRunner().invoke(app, ["settings", "--into", str(copy)])
    assert done.exit_code == 0, done.output
    assert copy.read_text("utf-8") == TEXT, "run `make docs`"
    for name in Settings.model_fields:
        assert f"| `--{name.replace('_', '-')}` | `MEGACONTEXT_{name.upper()}` |" in TEXT


def test_settings_need_their_place(tmp_path: Path) -> None:
    """Law: a file without the marks of the table is refused and left as it was."""
    (tmp_path / "other.md").write_text("# Nothing\n")
    assert CliRunner().invoke(app, ["settings", "--into", str(tmp_path / "other.md")]).exit_code
    assert (tmp_path / "other.md").read_text() == "# Nothing\n"


def test_every_reason_has_an_answer() -> None:
    """Law: what /ready can give as a reason has a row that says what to do."""
    source = (ROOT / "server" / "apis" / "operations" / "routes.py").read_text("utf-8")
    reasons = re.findall(r"reasons\.append\(f?\"([^\"{]+)", source)
    assert len(reasons) >= 3
    rows = first_cells("Not ready")
    for reason in reasons:
        assert any(row.startswith(f"`{reason.rstrip()}") for row in rows), reason


def test_every_alert_has_an_answer() -> None:
    """Law: alerts and their table name each other, and panels that the text sends one to exist."""
    rows = first_cells("Watch")
    panels = {title for title, _ in dashboard_queries()}
    alerts = {rule["alert"] for rule in rules()}
    start = rows.index("alert")
    assert set(rows[start + 2 :]) == alerts
    assert {name for row in rows[2:start] for name in re.split(r", (?=[A-Z])", row)} <= panels
    assert set(re.findall(r"panel \*([^*]+)\*", TEXT)) <= panels


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("repair", ["block", "exact"])
def test_slab_formula(repair: str, dtype: torch.dtype, model: Path, tmp_path: Path) -> None:
    """Law: the formula gives the bytes of the slabs that an engine allocates."""
    bundle = load_bundle(model, dtype=dtype)
    store = open_store(f"sqlite:///{tmp_path}/sizes.sqlite")
    core = build_core(bundle, FocusConfig(budget=512), EngineConfig(max_sessions=3), store, repair=repair)
    store.close()
    pool = core.runner.pool
    assert pool.bytes() == pool_formula(pool, bundle.decoder.config)
    assert pool.slots == 512 + bundle.block_size
    assert "max_sessions x (W + K) x ((2 + u) x layers x kv_heads x head_dim x b + b + 8)" in TEXT


def test_measured_slabs_are_those_of_the_formula() -> None:
    """Law: the document's figure for the bundled model's shape is what the formula gives for it."""
    shape = DecoderConfig("qwen3", 4096, 256, 768, num_layers=6, num_heads=4, num_kv_heads=2, head_dim=64)
    written = re.search(r"^\| 16 slabs of 1,056 slots \| ([\d,]+) \| ([\d,]+) \|$", TEXT, re.MULTILINE)
    assert written
    assert {int(figure.replace(",", "")) for figure in written.groups()} == {16 * slab_bytes(shape, 1056, 4, True)}


def test_history_formula(model: Path) -> None:
    """Law: a history takes the bytes of the formula, and at most twice as much is allocated ahead."""
    bundle = load_bundle(model)
    session = SessionFactory(bundle, FocusConfig(budget=512)).create("sizes", "tenant", model="tiny")
    tokens = 40_000
    session.append(np.random.default_rng(0).integers(3, 380, tokens).astype(np.int32))
    expected = history_bytes(tokens, tokens, session.tree.dim, session.block_size)
    assert expected <= sum(session.tree.hot_bytes().values()) <= 2 * expected + 65_536
    # Every token of random text is a word of its own, twice: alone and in a pair. Prose repeats itself.
    assert 0 < word_index_bytes(session) <= 24 * tokens


def test_backups_come_back(model: Path, tmp_path: Path) -> None:
    """Law: each procedure of the document makes, of a running server's file, one that another server serves."""
    commands = re.findall(r"^(?:sqlite3 |python -c ).+$", TEXT, re.MULTILINE)
    assert len(commands) == 2
    store = tmp_path / "megacontext.sqlite"
    with running(settings_for(model, store)) as address:
        session = httpx.post(f"{address}/v1/sessions", json={"system": "Remember."}).raise_for_status().json()["id"]
        question = {"model": "tiny", "session_id": session, "messages": [{"role": "user", "content": "Hello"}]}
        answer = httpx.post(f"{address}/v1/chat/completions", json=question | {"max_tokens": 4}, timeout=60)
        tokens = answer.raise_for_status().json()["x_megacontext"]["tokens"]
        copies = [_backup(command, store, tmp_path / f"copy{i}.sqlite") for i, command in enumerate(commands)]
    for copy in filter(None, copies):
        with running(settings_for(model, copy)) as address:
            found = httpx.get(f"{address}/v1/sessions/{session}").raise_for_status().json()
            assert found["tokens"] >= tokens > 0


def _backup(command: str, store: Path, copy: Path) -> Path | None:
    """Run one command of the document on this test's files; None if its program isn't there."""
    for path in ("/var/lib/megacontext/megacontext.sqlite", "/data/megacontext.sqlite"):
        command = command.replace(path, str(store))
    for path in ("/var/backups/megacontext.sqlite", "/data/backup.sqlite"):
        command = command.replace(path, str(copy))
    if command.startswith("sqlite3") and shutil.which("sqlite3") is None:
        return None
    subprocess.run(command.replace("python -c", f"{sys.executable} -c"), shell=True, check=True)
    assert copy.exists()
    return copy

"""``megacontext train base``, from text to a folder to serve."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from server.cli import app

TEXT = "the whale swam under a grey sea while sailors sang of home and storms that drove their ship far from land"
SIZES = {
    "hidden-size": 32,
    "num-layers": 1,
    "num-heads": 2,
    "num-kv-heads": 1,
    "head-dim": 16,
    "intermediate-size": 64,
    "vocab-size": 600,
    "batch-tokens": 1024,
    "log-steps": 1,
}


def test_a_run_ends_in_a_bundle_and_goes_on(tmp_path: Path) -> None:
    """Law: a run writes a bundle and prints where; the same command with more tokens goes on from its checkpoint."""
    data, out = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    words = TEXT.split()
    documents = [" ".join(words[(i * j) % len(words)] for j in range(1, 600)) for i in range(1, 40)]
    questions = "What is the magic number of the harbour key? Remember it, please: 0 1 2 3 4 5 6 7 8 9. " * 20
    rows = [{"text": text} for text in [*documents, questions]]
    (data / "a.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    for tokens, steps in (("2048", 2), ("3072", 3)):
        arguments = ["train", "base", "--data", str(data), "--out", str(out), "--total-tokens", tokens]
        arguments += [str(part) for name, size in SIZES.items() for part in (f"--{name}", size)]
        result = CliRunner(env={"COLUMNS": "200"}).invoke(app, arguments)
        assert result.exit_code == 0, result.output
        assert result.stdout.strip() == str(out / "bundle")
        manifest = json.loads((out / "bundle" / "bundle.json").read_text())
        assert manifest["evaluation"]["base"]["steps"] == steps
    logged = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [entry["done"] for entry in logged] == [1, 2, 3]
    assert (out / "bundle" / "model.safetensors").is_file()

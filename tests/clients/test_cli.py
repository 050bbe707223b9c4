"""The command line: options from settings, errors as words, fast start."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from server.cli import app
from server.commands.options import build, fields_of, with_options
from server.settings import Settings
from wire_server import KEY, Wire

RUNNER = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"})


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MEGACONTEXT_")]:
        monkeypatch.delenv(name)


def serve(*arguments: str) -> tuple[list[Settings], str, int]:
    """The settings that ``serve`` would run with, what it says, and its exit status."""
    got: list[Settings] = []
    single = typer.Typer()
    single.command()(with_options(Settings, got.append))
    result = RUNNER.invoke(single, arguments)
    return got, result.output, result.exit_code


def test_every_setting_is_an_option() -> None:
    """Law: the settings class is the one list of options, and each is explained with its environment variable."""
    result = RUNNER.invoke(app, ["serve", "--help"])
    assert result.exit_code == 0
    for name, info in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')} " in result.output
        assert f"MEGACONTEXT_{name.upper()}" in result.output
        assert info.description


def test_options_become_settings() -> None:
    """Law: text is converted by the settings class; keys repeat; what isn't given keeps its default."""
    got, _, code = serve("--port", "9000", "--api-key", "a", "--api-key", "b", "--model", "/m", "--repair", "exact")
    assert code == 0
    assert (got[0].port, got[0].model, got[0].repair) == (9000, "/m", "exact")
    assert [key.get_secret_value() for key in got[0].api_key] == ["a", "b"]
    assert got[0].budget == Settings.model_fields["budget"].default


def test_options_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: an option beats the environment, the environment beats the default."""
    monkeypatch.setenv("MEGACONTEXT_PORT", "9001")
    monkeypatch.setenv("MEGACONTEXT_BUDGET", "2048")
    got, _, _ = serve("--port", "9002")
    assert (got[0].port, got[0].budget) == (9002, 2048)


def test_wrong_values_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: a wrong value is refused with the name of its option, and no value is echoed that may be a key."""
    got, said, code = serve("--port", "70000", "--api-key", "sesame", "--api-key", "")
    assert (got, code) == ([], 2)
    assert "--port" in said
    assert "--api-key" in said
    assert "sesame" not in said
    monkeypatch.setenv("MEGACONTEXT_MAX_QUEUE", "many")
    got, said, code = serve()
    assert (got, code) == ([], 2)
    assert "MEGACONTEXT_MAX_QUEUE" in said


@dataclasses.dataclass(frozen=True)
class Inner:
    width: int = 4


@dataclasses.dataclass(frozen=True)
class Outer:
    data: Path
    inner: Inner = dataclasses.field(default_factory=Inner)
    parts: tuple[Inner, ...] = (Inner(),)
    mix: dict[str, float] | None = None
    quick: bool = False
    rate: float | None = None

    def __post_init__(self) -> None:
        if self.rate is not None and self.rate <= 0:
            raise ValueError("rate must be above 0")


def test_dataclasses_make_options_too() -> None:
    """Law: nested fields, flags, pairs and required fields of a dataclass work as options."""
    got: list[Outer] = []
    single = typer.Typer()
    single.command()(with_options(Outer, got.append))
    assert [field.name for field in fields_of(Outer)] == ["data", "width", "mix", "quick", "rate"]
    arguments = ["--data", "d", "--width", "8", "--mix", "a=1", "--mix", "b=c=.5", "--quick"]
    assert RUNNER.invoke(single, arguments).exit_code == 0
    assert got == [Outer(Path("d"), Inner(8), mix={"a": 1.0, "b=c": 0.5}, quick=True)]
    for wrong, told in (
        ([], "--data"),
        (["--data", "d", "--width", "x"], "--width"),
        (["--data", "d", "--mix", "a"], "NAME=VALUE"),
    ):
        refused = RUNNER.invoke(single, wrong)
        assert refused.exit_code == 2
        assert told in refused.output
    with pytest.raises(typer.BadParameter, match="rate must be above 0"):
        build(Outer, {"data": "d", "rate": "0"})


def test_train_explains_every_option() -> None:
    """Law: each field of a trainer's settings has an option with a help text, and no help text is left over."""
    from mc_core.lab.training.base.base_config import BaseTrainConfig
    from mc_core.lab.training.focus.focus_training import FocusTrainConfig
    from mc_core.lab.training.lens.lens_training import LensTrainConfig
    from server.commands.lab import train_base, train_focus, train_lens

    runs = ((train_base, BaseTrainConfig), (train_focus, FocusTrainConfig), (train_lens, LensTrainConfig))
    for command, config in runs:
        assert set(command.HELP) == {field.name for field in fields_of(config)}
    result = RUNNER.invoke(app, ["train", "base", "--help"])
    assert result.exit_code == 0
    assert "--hidden-size" in result.output
    assert "--bundle" in result.output
    assert RUNNER.invoke(app, ["train", "nothing"]).exit_code == 2


def test_start_up_imports_no_model_code() -> None:
    """Law: the command line starts without torch, numpy, the web framework or the tokenizers; commands import them."""
    heavy = ("torch", "fastapi", "tokenizers", "numpy")
    code = f"import server.cli, sys, json; print(json.dumps([m for m in {heavy} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(done.stdout) == []


def test_version_and_help() -> None:
    """Law: --version answers, and every command is listed."""
    assert "megacontext" in RUNNER.invoke(app, ["--version"]).output
    listed = RUNNER.invoke(app, ["--help"]).output
    assert all(f" {name} " in listed for name in ("serve", "chat", "ingest", "train"))


def test_ingest(url: str, wire: Wire, tmp_path: Path) -> None:
    """Law: files go to one new session, whose id is all that stdout says."""
    files = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for file in files:
        file.write_text(f"from {file.name}", encoding="utf-8")
    result = RUNNER.invoke(app, ["ingest", *map(str, files), "--url", url, "--api-key", KEY])
    assert (result.exit_code, result.stdout) == (0, "s-new\n")
    assert [body["text"] for body in wire.received[1:]] == ["from a.txt", "from b.txt"]
    told = ["--title", "A & B", "--kind", "chat"]
    assert RUNNER.invoke(app, ["ingest", str(files[0]), *told, "--url", url, "--api-key", KEY]).exit_code == 0
    assert wire.received[-1] == {"text": "from a.txt", "title": "A & B", "kind": "chat"}
    assert RUNNER.invoke(app, ["ingest", *map(str, files), *told, "--url", url, "--api-key", KEY]).exit_code == 2
    refused = RUNNER.invoke(app, ["ingest", str(files[0]), "--url", url, "--api-key", "wrong"])
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "unknown API key" in refused.stderr


def test_chat(url: str, wire: Wire) -> None:
    """Law: the chat reads lines until the input ends, with the options that were given."""
    arguments = ["chat", "--url", url, "--api-key", f"{KEY},another", "--session", "s-1", "--temperature", "0"]
    result = RUNNER.invoke(app, arguments, input="Hello\n")
    assert result.exit_code == 0
    assert "1,000 tokens of history" in result.output
    assert wire.received[-1]["temperature"] == 0


def test_no_server(free_port: int) -> None:
    """Law: a server that can't be reached is one line, which names its address, and exit status 1."""
    result = RUNNER.invoke(app, ["chat", "--url", f"http://127.0.0.1:{free_port}"])
    assert result.exit_code == 1
    assert f"cannot reach the server at 127.0.0.1:{free_port}: " in result.stderr
    assert len(result.stderr.splitlines()) == 1

"""``megacontext sessions``, over HTTP with a real server."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner, Result

from clients.transfer import BrokenExportError, save
from server.cli import app
from support import running, settings_for

RUNNER = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"})


@pytest.fixture(scope="module")
def server(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that asks for a key."""
    store = tmp_path_factory.mktemp("command") / "s.sqlite"
    with running(settings_for(model_dir, store, api_key=["k"])) as address:
        yield address


@pytest.fixture
def made(server: str) -> list[str]:
    """Ids of three new sessions, the newest last; the others are gone."""
    with httpx.Client(base_url=server, headers={"Authorization": "Bearer k"}) as http:
        for old in http.get("/v1/sessions").json()["data"]:
            http.delete(f"/v1/sessions/{old['id']}")
        created = [http.post("/v1/sessions", json={"metadata": {"number": number}}).json() for number in range(3)]
        text = {"text": "The lighthouse's number is 4711. ", "title": "Log"}
        http.post(f"/v1/sessions/{created[-1]['id']}/ingest", json=text)
    return [one["id"] for one in created]


def call(server: str, *arguments: str, key: str = "k", data: bytes | None = None) -> Result:
    return RUNNER.invoke(app, ["sessions", *arguments, "--url", server, "--api-key", key], input=data)


def test_a_list_is_paged(server: str, made: list[str]) -> None:
    """Law: pages follow each other by the cursor that each names, as a table and as JSON."""
    first = json.loads(call(server, "list", "--limit", "2", "--json").output)
    assert [one["id"] for one in first["data"]] == made[:0:-1]
    rest = json.loads(call(server, "list", "--after", first["next"], "--json").output)
    assert [one["id"] for one in rest["data"]] == made[:1]
    assert rest["next"] is None
    table = call(server, "list", "--limit", "2")
    assert made[2] in table.output
    assert made[0] not in table.output
    assert f"more: --after {first['next']}" in table.output


def test_a_session_is_shown(server: str, made: list[str]) -> None:
    """Law: what is shown of a session is what the server says of it, with its newest messages."""
    told = json.loads(call(server, "show", made[2], "--json").output)
    assert told["metadata"] == {"number": 2}
    assert [one["title"] for one in told["messages"]] == ["Log"]
    assert "Log" in call(server, "show", made[2]).output


def test_a_file_goes_out_and_in(server: str, made: list[str], tmp_path: Path) -> None:
    """Law: an export is imported under a new id, or under its own once that is free; no file is overwritten; "-" is
    standard output, which has the export's bytes alone, and standard input."""
    target = tmp_path / "one.jsonl"
    assert call(server, "export", made[2], str(target)).output.strip() == str(target)
    refused = call(server, "export", made[2], str(target))
    assert refused.exit_code == 1
    assert "--force" in refused.output
    copy = call(server, "import", str(target))
    assert copy.exit_code == 0
    assert copy.output.strip() not in made
    assert call(server, "import", str(target), "--keep-id").exit_code == 1
    assert call(server, "delete", made[2], copy.output.strip(), "--yes").exit_code == 0
    back = json.loads(call(server, "import", str(target), "--keep-id", "--json").output)
    assert back["id"] == made[2]
    out = call(server, "export", made[2], "-")
    assert (out.exit_code, out.stderr_bytes) == (0, b"")
    assert json.loads(out.stdout_bytes.splitlines()[0])["type"] == "session"
    assert json.loads(out.stdout_bytes.splitlines()[-1])["type"] == "end"
    assert call(server, "delete", made[2], "--yes").exit_code == 0
    assert call(server, "import", "-", "--keep-id", data=out.stdout_bytes).stdout == f"{made[2]}\n"


def shell(arguments: str, *more: str) -> subprocess.CompletedProcess[str]:
    """Of the command line, with redirections; more: what ``$1`` and so on stand for."""
    command = f"exec {sys.executable} -c 'from server.cli import app; app()' {arguments}"
    return subprocess.run(["sh", "-c", command, "sh", *more], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("arguments", "closed"),
    [
        ("sessions import - <&-", "input"),
        ("sessions export ID - >&-", "output"),
        ("chat <&-", "input"),
        ("chat </dev/null >&-", "output"),
    ],
)
def test_a_closed_standard_stream_is_one_line(server: str, made: list[str], arguments: str, closed: str) -> None:
    """Law: a command that needs a stream that is closed says so in one line, with the status of bad input, and a chat
    without one leaves no session behind."""
    done = shell(f"{arguments} --url $1 --api-key k", server)
    assert done.stderr == f"megacontext: standard {closed} is closed\n"
    assert done.returncode == 2
    assert len(json.loads(call(server, "list", "--json").output)["data"]) == len(made)


@pytest.mark.parametrize("form", ["", "--json"])
def test_the_id_of_what_was_imported_is_told(server: str, made: list[str], tmp_path: Path, form: str) -> None:
    """Law: the id of a new session is told on standard error where standard output is closed."""
    target = str(tmp_path / "one.jsonl")
    assert call(server, "export", made[2], target).exit_code == 0
    done = shell(f'sessions import "$1" {form} --url "$2" --api-key k >&-', target, server)
    assert done.returncode == 0
    newest = json.loads(call(server, "list", "--json").output)["data"][0]["id"]
    assert newest not in made
    assert (json.loads(done.stderr)["id"] if form else done.stderr.strip()) == newest


def test_what_is_refused_is_one_line(server: str, made: list[str], tmp_path: Path) -> None:
    """Law: errors name their cause, with status 1, and no deletion happens without a yes."""
    assert call(server, "list", key="wrong").exit_code == 1
    assert "does not exist" in call(server, "show", "sess_none").output
    assert call(server, "export", "sess_none", str(tmp_path / "none")).exit_code == 1
    assert not list(tmp_path.iterdir())
    assert call(server, "delete", made[0]).exit_code == 1  # nobody says yes
    assert call(server, "show", made[0]).exit_code == 0
    bad = tmp_path / "bad.jsonl"
    bad.write_text("{}\n")
    assert "damaged" in call(server, "import", str(bad)).output


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
def test_a_broken_export_leaves_no_file(server: str, made: list[str], tmp_path: Path, size: int) -> None:
    """Law: a file appears only if its checksum is right, however it comes in pieces."""
    with httpx.Client(base_url=server, headers={"Authorization": "Bearer k"}) as http:
        whole = http.get(f"/v1/sessions/{made[2]}/export").content
    save((whole[at : at + size] for at in range(0, len(whole), size)), tmp_path / "whole")
    assert (tmp_path / "whole").read_bytes() == whole
    for bad in (whole[:-40], whole[:100], b"", whole.replace(b"4", b"5", 1)):
        with pytest.raises(BrokenExportError):
            save((bad[at : at + size] for at in range(0, len(bad), size)), tmp_path / "bad")
    assert [one.name for one in tmp_path.iterdir()] == ["whole"]


def test_a_session_is_kept(server: str, made: list[str]) -> None:
    """Law: for good, for a time, or as the server says; the list tells."""
    assert call(server, "keep", made[0], made[1]).output.splitlines() == [f"{one}\tkept" for one in made[:2]]
    assert "kept" in call(server, "list").output
    assert call(server, "keep", made[0], "--ttl", "0").output == f"{made[0]}\tnever\n"
    until = call(server, "keep", made[0], "--ttl", "86400").output.split("\t")[1].strip()
    assert until > datetime.now().strftime("%Y-%m-%d %H:%M")
    told = json.loads(call(server, "show", made[0], "--json").output)
    assert (told["keep"], told["ttl"]) == (False, 86400)

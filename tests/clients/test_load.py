"""``megacontext load`` against the real server."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from clients.load.runner import Runner
from clients.load.settings import LoadSettings
from clients.load.text import CALIBRATION_TURNS
from clients.megacontext_client import MegaContext
from server.cli import app
from support import running, settings_for, wait_until, write_model

RUNNER = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"})
ROOT = Path(__file__).parents[2]
KEY = "sesame"
FAST = ("--prompt-tokens", "uniform:20,40", "--output-tokens", "6")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def address(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    store = tmp_path_factory.mktemp("store") / "sessions.sqlite"
    with running(settings_for(model, store, max_sessions=4, max_queue=64, api_key=[KEY])) as address:
        yield address


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MEGACONTEXT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MEGACONTEXT_API_KEY", f"{KEY},another")


def load(address: str, *options: str) -> dict[str, Any]:
    """Run the command -> its whole report."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.json"
        result = RUNNER.invoke(app, ["load", address, *options, "--json", str(file)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        report = json.loads(file.read_text())
    last = json.loads(result.stdout.splitlines()[-1])
    assert {name: last[name] for name in report["requests"]} == report["requests"]
    assert KEY not in result.output
    return dict(report)


def totals(address: str) -> dict[str, float]:
    """The counters of /metrics."""
    text = httpx.get(f"{address}/metrics", headers={"Authorization": f"Bearer {KEY}"}).text
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


class Counted:
    """What the server's counters grew by within the block."""

    def __init__(self, address: str) -> None:
        self._address = address

    def __enter__(self) -> Counted:
        self._before = totals(self._address)
        return self

    def __exit__(self, *_: object) -> None:
        after = totals(self._address)
        self._grown = {name: value - self._before.get(name, 0.0) for name, value in after.items()}

    def __call__(self, name: str, *labels: str) -> float:
        """Sum of the series of a name with these labels (name="value")."""
        found = [key for key in self._grown if key.partition("{")[0] == name and all(label in key for label in labels)]
        assert found, f"/metrics has no {name} {labels}"
        return sum(self._grown[key] for key in found)


CHAT = 'route="/v1/chat/completions"'


def test_counts_are_the_servers(address: str) -> None:
    """Law: turns, tokens and ingested tokens of a run are what the server counted, beside warm-up and calibration."""
    with Counted(address) as grown:
        report = load(address, *FAST, "--sessions", "5", "--turns", "3", "--history-tokens", "100", "--warm-up", "2")
    extra = CALIBRATION_TURNS + 2
    assert report["requests"] == {
        "sent": 15,
        "completed": 15,
        "failed": 0,
        "disconnected": 0,
        "by_status": {"200": 15},
    }
    assert report["warm_up"] == {"sent": 2, "completed": 2, "prompt_tokens": report["warm_up"]["prompt_tokens"]}
    assert grown("megacontext_turns_total") == 15 + extra
    assert grown("megacontext_http_requests_total", CHAT, 'status="200"') == 15 + extra
    assert grown("megacontext_completion_tokens_total") == 15 * 6 + 2 * 6 + CALIBRATION_TURNS
    assert report["tokens"]["completion"] == 15 * 6
    others = report["calibration"]["prompt_tokens"] + report["warm_up"]["prompt_tokens"]
    assert grown("megacontext_prompt_tokens_total") == report["tokens"]["prompt"] + others
    assert grown("megacontext_ingested_tokens_total") == report["ingested_tokens"]


def test_lengths_are_what_was_asked_for(address: str) -> None:
    """Law: prompts and histories are as long as asked, by the server's own count, and histories grow by whole turns."""
    report = load(
        address, "--prompt-tokens", "90", "--output-tokens", "5", "--history-tokens", "600", "--sessions", "3"
    )
    tokens = report["tokens"]
    assert tokens["prompt"] == pytest.approx(tokens["prompt_asked"], rel=0.1)
    assert report["ingested_tokens"] == pytest.approx(3 * 600, rel=0.1)
    medians = [group["history_median"] for group in report["by_turn"]]
    assert [group["count"] for group in report["by_turn"]] == [3, 3, 3, 3]
    assert medians[0] == pytest.approx(600, rel=0.1)
    steps = [after - before for before, after in pairwise(medians)]
    assert steps == pytest.approx([95] * 3, rel=0.1)


def test_clients_that_leave(address: str) -> None:
    """Law: the planned share leaves in the middle; the server answered each of them, and none of them is completed."""
    with Counted(address) as grown:
        report = load(
            address, "--prompt-tokens", "20", "--output-tokens", "60", "--sessions", "6", "--disconnect", "0.5"
        )
    requests = report["requests"]
    assert requests["failed"] == 0
    assert requests["by_status"] == {"200": 24}
    assert 4 <= requests["disconnected"] <= 20
    assert requests["completed"] == 24 - requests["disconnected"]
    assert grown("megacontext_turns_total") - CALIBRATION_TURNS == 24
    # A reply may be over at the server in the moment in which its client leaves.
    assert 0 < grown("megacontext_turns_total", 'outcome="CancelledTurnError"') <= requests["disconnected"]
    everyone = load(address, "--output-tokens", "60", "--sessions", "2", "--turns", "2", "--disconnect", "1")
    assert (everyone["requests"]["disconnected"], everyone["latency_ms"]["end_to_end"]) == (4, None)


def test_refusals_are_failures(model: Path, tmp_path: Path) -> None:
    """Law: a turn that the server has no room for is counted as failed with its status, and never sent again."""
    settings = settings_for(model, tmp_path / "store.sqlite", max_sessions=1, max_queue=0)
    options = ("--output-tokens", "80", "--prompt-tokens", "20", "--sessions", "6", "--turns", "1")
    with running(settings) as address:
        with Counted(address) as grown:
            report = load(address, *options, "--concurrency", "6")
        statuses = report["requests"]["by_status"]
        assert set(statuses) == {"200", "429"}
        assert statuses["200"] >= 1
        assert (report["requests"]["failed"], report["requests"]["sent"]) == (statuses["429"], 6)
        assert grown("megacontext_http_requests_total", CHAT, 'status="429"') == statuses["429"]
        assert report["goodput"]["share"] <= statuses["200"] / 6


def test_an_open_loop_counts_from_the_due_time(address: str) -> None:
    """Law: when a session can't keep up with its schedule, the waiting shows in the latencies, not only in lateness."""
    report = load(address, *FAST, "--rate", "1000", "--arrivals", "constant", "--sessions", "1", "--turns", "12")
    latency = report["latency_ms"]
    assert report["requests"]["completed"] == 12
    # Twelve turns are due within 11 ms, and each waits for the one before it.
    last = latency["time_to_first_token_from_send"]["mean"] * 11
    assert latency["lateness"]["max"] > last / 2
    whole = latency["time_to_first_token_from_send"]["mean"] + latency["lateness"]["mean"]
    assert latency["time_to_first_token"]["mean"] == pytest.approx(whole)


def test_an_open_loop_keeps_its_rate(address: str) -> None:
    """Law: turns are sent when they are due, however long replies take."""
    report = load(address, *FAST, "--rate", "10", "--arrivals", "constant", "--sessions", "10", "--turns", "1")
    assert report["requests"]["completed"] == 10
    assert report["seconds"] >= 0.9
    assert report["latency_ms"]["lateness"]["median"] < 100


def test_a_duration_ends_a_closed_loop(address: str) -> None:
    """Law: after the duration nothing more is sent, and what is under way is finished."""
    report = load(address, *FAST, "--sessions", "4", "--turns", "1000", "--duration", "0.5")
    assert 0.4 < report["seconds"] < 5
    assert 0 < report["requests"]["completed"] == report["requests"]["sent"] < 4000


def test_think_time(address: str) -> None:
    """Law: in a closed loop the user thinks between reply and next turn, and the wait is no latency."""
    report = load(address, *FAST, "--sessions", "1", "--turns", "3", "--think-time", "0.3")
    assert report["seconds"] >= 0.6
    assert report["latency_ms"]["lateness"]["max"] == 0


@pytest.mark.parametrize("kind", ["azure", "mooncake"])
def test_replay(address: str, tmp_path: Path, kind: str) -> None:
    """Law: a trace's turns arrive when they did, at the given speed, with their lengths, in their conversations."""
    trace = tmp_path / "trace"
    if kind == "azure":
        rows = ["TIMESTAMP,ContextTokens,GeneratedTokens"]
        rows += [f"2023-11-16 18:15:{46 + 2 * i}.6805900,{60 + i},{4 + i}" for i in range(4)]
    else:
        shape = [(60, [1, 2, 3]), (120, [1, 2, 4, 5]), (50, [7, 8, 9]), (180, [1, 2, 4, 6, 7])]
        rows = [
            json.dumps({"timestamp": 2000 * i, "input_length": n, "output_length": 4 + i, "hash_ids": blocks})
            for i, (n, blocks) in enumerate(shape)
        ]
    trace.write_text("\n".join(rows))
    report = load(address, "--trace", str(trace), "--speed", "10")
    assert report["requests"]["completed"] == 4
    assert report["tokens"]["completion"] == 4 + 5 + 6 + 7
    asked = 60 + 61 + 62 + 63 if kind == "azure" else 60 + (120 - 64) + 50 + (180 - 125)
    assert report["tokens"]["prompt_asked"] == asked
    assert report["tokens"]["prompt"] == pytest.approx(asked, rel=0.2)
    assert report["tokens"]["longest_history"] == pytest.approx(0 if kind == "azure" else 125, rel=0.2)
    assert report["seconds"] >= 0.6


def test_same_seed_same_texts(address: str, tmp_path: Path) -> None:
    """Law: two runs with one seed send the same; the sessions that a run leaves hold what it sent."""

    def histories(seed: int) -> list[tuple[str, int]]:
        report = load(address, *FAST, "--sessions", "3", "--turns", "2", "--seed", str(seed), "--keep-sessions")
        assert report["requests"]["completed"] == 6
        with MegaContext(address, KEY) as server:
            sessions = list(server.sessions())
            for session in sessions:
                server.delete(session.id)
        return sorted((session.metadata["load"], session.tokens) for session in sessions)

    one, same, other = histories(1), histories(1), histories(2)
    assert one == same
    assert one != other


def test_a_document_for_each_session(address: str, tmp_path: Path) -> None:
    """Law: with --ingest each session reads the file first, and afterwards no session is left."""
    book = tmp_path / "book.txt"
    book.write_text("It was the best of times, it was the worst of times. " * 20)
    with Counted(address) as grown:
        report = load(address, *FAST, "--sessions", "2", "--turns", "1", "--ingest", str(book))
    assert report["ingested_tokens"] == grown("megacontext_ingested_tokens_total") > 0
    assert report["by_turn"][0]["history_median"] == report["ingested_tokens"] / 2
    with MegaContext(address, KEY) as server:
        assert list(server.sessions()) == []


def test_the_page(address: str, tmp_path: Path) -> None:
    """Law: --html writes a page of the run that names no URL."""
    page = tmp_path / "report.html"
    load(address, *FAST, "--sessions", "2", "--turns", "3", "--html", str(page))
    html = page.read_text(encoding="utf-8")
    assert "<svg" in html
    assert not re.search(r"https?:|//\w", html)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--rate", "x"], "--rate"),
        (["--disconnect", "2"], "--disconnect"),
        (["--prompt-tokens", "gauss:1"], "--prompt-tokens"),
        (["--trace", "/no/such"], "--trace"),
        (["--trace", __file__], "--trace: line 1"),
        (["--rate", "1", "--think-time", "1"], "--think-time"),
        (["--json", "/no/such/folder/report.json"], "/no/such/folder"),
        (["--concurrency", "0"], "--concurrency"),
    ],
)
def test_bad_options_are_named(address: str, options: list[str], named: str) -> None:
    """Law: a wrong option is refused by name before anything is sent."""
    with Counted(address) as grown:
        result = RUNNER.invoke(app, ["load", address, *options])
    assert result.exit_code != 0
    assert named in result.stderr
    assert result.stdout == ""
    assert grown("megacontext_prompt_tokens_total") == 0


def test_a_server_that_is_not_there(free_port: int) -> None:
    """Law: no server is one line and exit status 1; an address that is none is named."""
    result = RUNNER.invoke(app, ["load", f"http://127.0.0.1:{free_port}"])
    assert result.exit_code == 1
    assert "cannot reach the server" in result.stderr
    assert "URL" in RUNNER.invoke(app, ["load", "localhost:8000"]).stderr
    assert "URL" in RUNNER.invoke(app, ["load"]).stderr


def test_an_interrupt_still_reports(address: str, tmp_path: Path) -> None:
    """Law: Ctrl-C ends the sending; what was measured until then is reported, and the sessions are deleted."""
    command = [sys.executable, "-m", "server.cli", "load", address, *FAST, "--sessions", "2", "--turns", "1000"]
    # A shell's background job ignores Ctrl-C, and so would what it starts.
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            [*command, "--json", str(tmp_path / "report.json")],
            cwd=ROOT,
            env={**os.environ, "MEGACONTEXT_API_KEY": KEY},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        signal.signal(signal.SIGINT, ours)
    try:
        before = totals(address)["megacontext_completion_tokens_total"]
        some = CALIBRATION_TURNS + 10 * 6
        wait_until(lambda: totals(address)["megacontext_completion_tokens_total"] > before + some, 60)
        process.send_signal(signal.SIGINT)
        said, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["interrupted"] is True
    assert 0 < json.loads(said.splitlines()[-1])["completed"] < report["planned"]
    with MegaContext(address, KEY) as server:
        assert list(server.sessions()) == []


def test_a_replay_deletes_each_session_after_its_last_turn(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: a replay keeps no session of a conversation that is over, so a long one does not fill the server; its report
    names the trace without the folders of the machine."""
    left: list[int] = []
    clean_up = Runner._delete_all

    async def counted(runner: Runner) -> None:
        with MegaContext(address, KEY) as server:
            left.append(len(list(server.sessions())))
        await clean_up(runner)

    monkeypatch.setattr(Runner, "_delete_all", counted)
    trace = tmp_path / "trace"
    rows = [f"2023-11-16 18:15:4{i}.6805900,{60 + i},4" for i in range(3)]
    trace.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]))
    report = load(address, "--trace", str(trace), "--speed", "10")
    assert report["requests"]["completed"] == 3
    assert set(left) == {0}
    assert report["settings"]["trace"] == "trace"
    assert str(tmp_path) not in json.dumps(report)


def test_every_option_is_explained() -> None:
    """Law: each field of the settings is an option with a help text, and starting the command line loads no runner."""
    said = RUNNER.invoke(app, ["load", "--help"]).output
    for name, field in LoadSettings.model_fields.items():
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        flag = "URL" if extra.get("positional") else str(extra.get("flag") or f"--{name.replace('_', '-')}")
        assert f"{flag} " in said
        assert field.description
    code = "import server.cli, sys; print([m for m in ('httpx', 'jinja2', 'clients.load.runner') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"

"""The server as a process: it drains on SIGTERM, resumes its sessions, and says what does not fit."""

import concurrent.futures
import json
import logging
import signal
import sqlite3
import threading

import httpx
import pytest
from typer.testing import CliRunner

from mc_core.errors import ConfigError, StoreError
from server.build import build_state
from server.cli import app
from server.stores import open_store
from support import ServerProcess, ServerThread, free_port, gauge, running, settings_for, wait_until

MODEL = "tiny"
ASK = [{"role": "user", "content": "Tell me of the lighthouse"}]
TEXT = "The keeper of the lighthouse counted the waves, and told nobody. " * 100


def stream_of(address, started=None, headers=None, **fields):
    """Lines of a streamed chat; ``started`` is set at the first text."""
    body = {"model": MODEL, "messages": ASK, "stream": True, **fields}
    lines = []
    with httpx.stream("POST", f"{address}/v1/chat/completions", json=body, headers=headers, timeout=60) as response:
        assert response.status_code == 200
        for line in response.iter_lines():
            lines.append(line)
            if started is not None and line.startswith("data: ") and '"content":""' not in line:
                started.set()
    return lines


def test_a_restart_resumes_every_session(model_dir, tmp_path):
    """After a stop, sessions are there as they were, and the next turn continues them, from the keys and values that
    its server left; these go with their session."""
    kept_as_files = tmp_path / "s.sqlite-kv"
    settings = settings_for(model_dir, tmp_path / "s.sqlite", hot_tokens=256)
    body = {"model": MODEL, "messages": ASK, "max_tokens": 8, "temperature": 0}
    with running(settings) as address, httpx.Client(base_url=address) as http:
        session = http.post("/v1/sessions", json={"metadata": {"n": 1}, "system": "Be brief."}).json()["id"]
        http.post(f"/v1/sessions/{session}/ingest", content=TEXT)
        first = http.post("/v1/chat/completions", json={**body, "session_id": session}).json()
        focus = http.get(f"/v1/sessions/{session}/focus").json()
        seen = http.get(f"/v1/sessions/{session}").json()
    with running(settings) as address, httpx.Client(base_url=address) as http:
        restored = http.get(f"/v1/sessions/{session}").json()
        kept = ("id", "tokens", "metadata", "sequence", "created")
        assert {key: restored[key] for key in kept} == {key: seen[key] for key in kept}
        again = http.get(f"/v1/sessions/{session}/focus").json()
        shape = [[(e["level"], e["start"], e["end"]) for e in each["entries"]] for each in (focus, again)]
        assert shape[0] == shape[1]
        second = http.post("/v1/chat/completions", json={**body, "session_id": session}).json()
        assert second["x_megacontext"]["tokens"] > first["x_megacontext"]["tokens"] == restored["tokens"]
        assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == restored["tokens"]
        assert second["x_megacontext"]["kv_reused"] > first["x_megacontext"]["kv_reused"] == 0
        assert len(list(kept_as_files.glob("*.safetensors"))) == 1
        assert http.delete(f"/v1/sessions/{session}").status_code < 300
        assert not list(kept_as_files.glob("*.safetensors"))


def test_what_a_file_of_keys_and_values_spared_is_told(model_dir, tmp_path):
    """Of each turn whose session came back without a slab, its answer and the metrics tell whether a file filled the
    new one, and with how many units; of one that stayed neither does."""
    said = {"model": MODEL, "messages": ASK, "max_tokens": 8}
    session, seen = None, []
    for folder in ("auto", "auto", "off"):
        with running(settings_for(model_dir, tmp_path / "s.sqlite", kv_folder=folder)) as address:
            session = session or httpx.post(f"{address}/v1/sessions", json={}).json()["id"]
            for _ in range(2):
                answer = httpx.post(f"{address}/v1/chat/completions", json={**said, "session_id": session})
                context = answer.json()["x_megacontext"]
                seen.append((context["source"], context["kv_loaded"] > 0))
            restored, loaded = seen[-2]
            for file in ("used", "none"):
                told = gauge(address, f'megacontext_wakes_total{{file="{file}",source="restored"}}')
                assert told == (restored == "restored" and loaded == (file == "used"))
            assert (gauge(address, "megacontext_kv_loaded_total") > 0) == loaded
    stayed = ("warm", False)
    assert seen == [stayed, stayed, ("restored", True), stayed, ("restored", False), stayed]


def test_a_file_of_keys_and_values_counts_though_its_turn_is_left(model_dir, tmp_path):
    """A turn that a client leaves has woken its session nevertheless: the next one finds its slab filled."""
    settings = settings_for(model_dir, tmp_path / "s.sqlite")
    body = {"model": MODEL, "messages": ASK, "max_tokens": 8}
    with running(settings) as address:
        session = httpx.post(f"{address}/v1/sessions", json={}).json()["id"]
        body["session_id"] = session
        httpx.post(f"{address}/v1/chat/completions", json=body)
    with running(settings) as address:
        long = {**body, "stream": True, "max_tokens": 700, "ignore_eos": True}
        with httpx.stream("POST", f"{address}/v1/chat/completions", json=long) as response:
            next(line for line in response.iter_lines() if line.startswith("data: ") and '"content":""' not in line)
        context = httpx.post(f"{address}/v1/chat/completions", json=body).json()["x_megacontext"]
        assert (context["source"], context["kv_loaded"]) == ("warm", 0)
        assert gauge(address, 'megacontext_turns_total{outcome="CancelledTurnError"}') == 1
        assert gauge(address, 'megacontext_wakes_total{file="used",source="restored"}') == 1
        assert gauge(address, "megacontext_kv_loaded_total") > 0


def test_a_turn_after_a_restart_is_as_without_one(model_dir, tmp_path):
    """A greedy reply does not depend on whether the server was restarted before it."""
    replies = []
    for restart in (False, True):
        settings = settings_for(model_dir, tmp_path / f"{restart}.sqlite", repair="exact")
        with running(settings) as address:
            session = httpx.post(f"{address}/v1/sessions", json={}).json()["id"]
            httpx.post(f"{address}/v1/sessions/{session}/ingest", content=TEXT)
            ask = {"model": MODEL, "max_tokens": 24, "temperature": 0, "session_id": session, "messages": ASK}
            if not restart:
                replies.append(httpx.post(f"{address}/v1/chat/completions", json=ask).json())
        if restart:
            with running(settings) as address:
                replies.append(httpx.post(f"{address}/v1/chat/completions", json=ask).json())
    assert replies[0]["choices"] == replies[1]["choices"]
    assert [reply["x_megacontext"]["source"] for reply in replies] == ["woken", "restored"]


def test_sigterm(model_dir, tmp_path):
    """While a stream runs on, new work is answered 503 with Retry-After and /ready says why; then the process ends
    with status 0. Its logs are JSON lines with request ids, and hold neither text nor keys."""
    key = {"authorization": "Bearer secret-key-1"}
    with ServerProcess(model_dir, tmp_path / "s.sqlite", drain_seconds=60, api_key="secret-key-1") as server:
        http = httpx.Client(base_url=server.address, headers={**key, "x-request-id": "id-17"})
        wrong = http.post("/v1/sessions", json={}, headers={"authorization": "Bearer secret-key-2"})
        assert wrong.status_code == 401
        started = threading.Event()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            running = pool.submit(stream_of, server.address, started, key, max_tokens=700, ignore_eos=True)
            assert started.wait(20)
            server.send_signal(signal.SIGTERM)
            wait_until(lambda: http.get("/ready").status_code == 503)
            assert "draining" in http.get("/ready").json()["reasons"][0]
            for path, body in (("/v1/chat/completions", {"model": MODEL, "messages": ASK}), ("/v1/sessions", {})):
                refused = http.post(path, json=body)
                assert refused.status_code == 503
                assert int(refused.headers["retry-after"]) >= 1
                assert refused.json()["error"]["code"] == "draining"
            lines = running.result(timeout=60)
        assert lines[-2:] == ["data: [DONE]", ""]
        server.wait(30)
        assert server.status == 0
        output = server.output
    records = [json.loads(line) for line in output.splitlines()]
    assert {record["status"] for record in records if record.get("request_id") == "id-17"} == {401, 503}
    for secret in ("lighthouse", "secret-key"):
        assert secret not in output


def test_streams_that_outlive_the_drain_are_told(model_dir, tmp_path):
    """A stream that is still running when the drain ends gets an error event, never a false end."""
    settings = settings_for(model_dir, tmp_path / "s.sqlite", drain_seconds=0.5)
    with ServerThread(settings) as server, concurrent.futures.ThreadPoolExecutor(1) as pool:
        started = threading.Event()
        running = pool.submit(stream_of, server.address, started, max_tokens=10**6, ignore_eos=True)
        assert started.wait(20)
        server.sigterm()
        lines = [line for line in running.result(timeout=30) if line]
        assert lines[-2] == "event: error"
        assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "cancelled"
        assert "data: [DONE]" not in lines
        server.thread.join(20)
        assert not server.thread.is_alive()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model", "/nowhere"], "/nowhere"),
        (["--budget", "100"], "budget"),
        (["--budget", "100000"], "window"),
        (["--lens", "magic"], "lens"),
        (["--store", "mysql://x"], "store"),
        (["--repair", "sometimes"], "repair"),
        (["--block-size", "33"], "block_size"),
    ],
)
def test_settings_that_do_not_fit_are_told_in_a_line(model_dir, tmp_path, monkeypatch, flags, words):
    """A setting that cannot work ends the start with a message that names it, not with a traceback."""
    monkeypatch.setattr(logging.root, "handlers", [])  # The command sets up logs for its whole process.
    base = ["serve", "--model", str(model_dir), "--store", f"sqlite:///{tmp_path}/s.sqlite", "--port", "0"]
    done = CliRunner().invoke(app, [*base, *flags])
    assert done.exit_code != 0
    assert words in done.output
    assert "Traceback" not in done.output


@pytest.mark.parametrize("kind", ["no store", "no database", "no Redis"])
def test_a_bad_store_is_told_before_the_model_is_looked_for(tmp_path, monkeypatch, kind):
    """What is wrong with the store ends the start before anything is fetched, loaded or tried, and nothing is held."""

    def find_model(*_):
        raise AssertionError("the model was looked for")

    monkeypatch.setattr("server.build.find_model", find_model)
    file = tmp_path / "s.sqlite"
    file.write_bytes(b"no database, and longer than the head of one would be" * 4)
    url = f"sqlite:///{file}"
    if kind == "no store":
        file.unlink()
        with sqlite3.connect(file) as other:
            other.execute("CREATE TABLE others (id)")
    elif kind == "no Redis":
        url = f"redis://127.0.0.1:{free_port()}/0?patience=0.1"
    with pytest.raises(StoreError, match=r"s\.sqlite|127\.0\.0\.1"):
        build_state(settings_for(tmp_path / "nowhere", url))


@pytest.mark.parametrize("wrong", ["model", "encoder"])
def test_a_model_that_cannot_be_loaded_leaves_the_store_to_others(model_dir, tmp_path, wrong):
    """A start that fails behind the store gives it back, and leaves no file that was not there."""
    named = {"encoder": str(tmp_path / "nowhere")} if wrong == "encoder" else {}
    model, store = model_dir if wrong == "encoder" else tmp_path / "nowhere", tmp_path / "data" / "s.sqlite"
    settings = settings_for(model, store, **named)
    with pytest.raises(ConfigError, match="nowhere"):
        build_state(settings)
    assert list(tmp_path.iterdir()) == []
    open_store(settings.store).close()
    with pytest.raises(ConfigError, match="nowhere"):
        build_state(settings)
    assert store.exists()

"""megacontext doctor: it says what works and what does not, and its exit code says whether a server would run."""

import json
import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from server.cli import app
from server.commands.doctor import verdict
from server.stores import open_store
from server.telemetry import probe
from support import free_port, running, settings_for

BUNDLE = Path(__file__).parents[2] / "models" / "megacontext-tiny"
CHECKS = ["device", "model", "gists", "settings", "access", "address", "disk", "store", "traces", "metrics"]


@pytest.fixture
def store(tmp_path):
    return tmp_path / "sessions.sqlite"


@pytest.fixture
def run(model_dir, store):
    """Runs the command -> (exit code, status by check, detail by check)."""

    def run(**others):
        given = {"model": model_dir, "store": f"sqlite:///{store}", "budget": 512, "port": 0, **others}
        flags = [part for name, value in given.items() for part in (f"--{name}", str(value))]
        done = CliRunner().invoke(app, ["doctor", "--json", *flags])
        report = json.loads(done.stdout)
        assert [finding["check"] for finding in report["checks"]] == CHECKS
        assert report["ok"] == (done.exit_code == 0)
        status = {finding["check"]: finding["status"] for finding in report["checks"]}
        return done.exit_code, status, {finding["check"]: finding["detail"] for finding in report["checks"]}

    return run


def failed(status):
    return {check for check, each in status.items() if each == "failed"}


def test_all_is_well(received, run, store):
    """With a good model, a store and a collector: exit 0, the collector has the test span, the store has no trace."""
    code, status, details = run()
    assert (code, failed(status)) == (0, set())
    assert status["gists"] == "ok"
    assert "hidden" in details["gists"]
    assert [span.name for span in received.spans()] == ["mc.doctor"]
    assert len(received.metrics) == 1
    for signal in ("traces", "metrics"):
        assert "acknowledged" in details[signal]
        assert received.endpoint in details[signal]
    left = open_store(f"sqlite:///{store}")
    assert not left.list("megacontext-doctor").result().sessions
    left.close()


def test_the_bundled_model_as_int8_is_told_as_it_is(run):
    """A network that has not passed is a warning, and weights that are packed are counted too."""
    code, status, details = run(model=BUNDLE, weights="int8")
    assert (code, status["gists"]) == (0, "warning")
    assert "gistnet did not pass its evaluation" in details["gists"]
    assert "23.6 M parameters" in details["model"]


def test_without_an_endpoint_nothing_is_tried(run):
    """No OTLP endpoint is no fault: exit 0, and the words say that nothing is exported."""
    code, _, details = run()
    assert code == 0
    assert "not exported" in details["traces"]
    assert "not exported" in details["metrics"]


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_collector_that_is_gone(run, monkeypatch, protocol):
    """Nobody listens: exit 1, and the words name the address and the cause."""
    monkeypatch.setattr(probe, "TIMEOUT", 2.0)
    address = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    code, status, details = run()
    assert (code, failed(status)) == (1, {"traces", "metrics"})
    assert address in details["traces"]
    assert "refused" in details["traces"].lower()


def test_a_collector_that_refuses(received, run, monkeypatch):
    """A message that was sent, but not accepted, is not confirmed, whatever the sampler."""
    monkeypatch.setattr(probe, "TIMEOUT", 2.0)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    received.refuse = True
    assert failed(run()[1]) == {"traces", "metrics"}
    received.refuse = False
    assert failed(run()[1]) == set()


def test_a_bad_model(run, tmp_path, model_dir):
    """No folder, or a damaged file: exit 1, and the other checks still run."""
    code, status, details = run(model="/nowhere")
    assert (code, failed(status)) == (1, {"model", "gists", "settings"})
    assert "/nowhere" in details["model"]
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in model_dir.iterdir():
        (broken / file.name).write_bytes(file.read_bytes()[: 100 if file.suffix == ".safetensors" else None])
    code, status, details = run(model=broken)
    assert code == 1
    assert "safetensors" in details["model"]


def test_settings_that_do_not_fit(run):
    """A budget beyond the model's window: exit 1, while the model itself is well."""
    code, status, details = run(budget=100_000)
    assert (code, failed(status)) == (1, {"settings"})
    assert "window" in details["settings"]


def test_a_store_that_cannot_be_reached(run, tmp_path):
    """A store where nothing can be written: exit 1."""
    (tmp_path / "file").write_text("not a folder")
    code, status, details = run(store=f"sqlite:///{tmp_path}/file/sessions.sqlite")
    assert code == 1
    assert "store" in failed(status)
    assert "file" in details["store"]
    code, status, _ = run(store="mysql://somewhere")
    assert (code, failed(status)) == (1, {"store"})


def test_a_folder_of_keys_and_values_that_cannot_be_written(run, tmp_path):
    """What ends a server at its start fails here: exit 1, and the setting is named."""
    (tmp_path / "file").write_text("not a folder")
    code, status, details = run(**{"kv-folder": tmp_path / "file" / "kv"})
    assert (code, failed(status)) == (1, {"disk"})
    assert "kv_folder" in details["disk"]


def test_a_store_that_loses_what_it_was_given(run, monkeypatch):
    """What is read back is compared, not only read."""
    from server.stores.sqlite import SqliteStore

    honest = SqliteStore.write_spans
    monkeypatch.setattr(SqliteStore, "write_spans", lambda self, *args: honest(self, *args[:-1], args[-1] * 0))
    code, status, details = run()
    assert (code, failed(status)) == (1, {"store"})
    assert "not what was written" in details["store"]


def test_beside_a_running_server(run, model_dir, store):
    """The file of a server that runs is left alone, and that is no fault; nor is its address, which is told."""
    with running(settings_for(model_dir, store)) as address:
        code, status, details = run(port=address.rpartition(":")[2])
    assert (code, status["store"], status["address"]) == (0, "warning", "warning")
    assert "/ready" in details["store"]
    assert "a MegaContext server that runs" in details["address"]


def test_an_address_that_is_taken(run, tmp_path):
    """A port or a socket where another program listens, or a host that this machine has not: exit 1; named."""
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.socket(socket.AF_UNIX) as file:
        port = taken.getsockname()[1]
        file.bind(str(tmp_path / "s"))
        file.listen()
        for given, words in (
            ({"port": port}, f"127.0.0.1:{port}"),
            ({"unix-socket": tmp_path / "s"}, "somebody listens"),
            ({"unix-socket": tmp_path / "nowhere" / "s"}, "nowhere"),
            ({"host": "192.0.2.1"}, "192.0.2.1"),
        ):
            code, status, details = run(**given)
            assert (code, failed(status)) == (1, {"address"})
            assert words in details["address"]
    assert run(port=port)[1]["address"] == "ok"


def test_a_device_that_is_not_there(run):
    """A device that this machine lacks: exit 1."""
    code, status, _ = run(device="cuda:99")
    assert code == 1
    assert "device" in failed(status)


def test_a_full_disk(run, monkeypatch):
    """Little space is a warning, almost none a fault."""
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    for free, expected in ((1 << 30, "warning"), (1 << 20, "failed")):
        monkeypatch.setattr("server.doctor.shutil.disk_usage", lambda _, free=free: usage(0, 0, free))
        code, status, _ = run()
        assert (status["disk"], code) == (expected, expected == "failed")


def test_it_speaks_to_people(model_dir, store):
    """Without --json there is a line a check, and a last word that counts the warnings above it."""
    flags = ["--store", f"sqlite:///{store}", "--budget", "512", "--port", "0"]
    done = CliRunner().invoke(app, ["doctor", "--model", str(model_dir), *flags])
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (0, "All is well.")
    done = CliRunner().invoke(app, ["doctor", "--model", str(BUNDLE), *flags])
    lines = done.stdout.splitlines()
    assert done.exit_code == 0
    assert [line.split()[1] for line in lines[: len(CHECKS)]] == CHECKS
    assert sum(line.startswith("warning") for line in lines) == 1
    assert lines[-1] == "Nothing failed; 1 warning above."
    done = CliRunner().invoke(app, ["doctor", "--model", str(model_dir), *flags, "--device", "cuda:99"])
    assert done.exit_code == 1
    assert "will not work" in done.stdout


@pytest.mark.parametrize(
    ("statuses", "words"),
    [
        (["ok", "ok"], "All is well."),
        (["ok", "warning"], "Nothing failed; 1 warning above."),
        (["warning", "failed", "warning"], "This will not work; see what failed above, and 2 warnings."),
        (["ok", "failed"], "This will not work; see what failed above."),
    ],
)
def test_the_last_word_counts_what_was_found(statuses, words):
    """All is well only where nothing was found."""
    assert verdict(statuses) == words

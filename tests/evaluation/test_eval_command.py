"""``megacontext eval``: one run from the command line, and the same suites asked of a real server."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from eval_lab import FOCUS
from gguf_writer import tables_of, tiny_decoder, write_gguf
from mc_core.bundle.bundle import Bundle, load_bundle
from mc_core.errors import MegaContextError
from mc_core.lab.evaluation.answers import ask_all
from mc_core.lab.evaluation.engine_driver import EngineDriver
from mc_core.lab.tasks.filler import Filler
from mc_core.lab.tasks.plant import PlantPlan, plant
from server.cli import app
from server.commands.lab.eval_config import SuitesConfig
from server.commands.lab.eval_http import METHOD, HttpDriver
from server.commands.lab.eval_prompt import prompt_of
from server.stores.sqlite import SqliteStore
from support import CHATML, EOS, VOCABULARY, running, settings_for, write_tokenizer

SUITES_ASKED = ("needle", "plain", "chat")
QUICK = ("--trials", "2", "--baseline-trials", "1", "--max-answer-tokens", "3", "--depths", "4")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of which some documents are held out."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(["sea", "ship", "captain", "home", "storm"], 400)) for _ in range(400)]
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return folder


def test_one_run(bundle_dir: Path, data: Path, tmp_path: Path) -> None:
    """Tables on stdout; the JSON file holds every trial with its settings; pictures lie beside it."""
    out = tmp_path / "out"
    arguments = ["eval", "needle", "paraphrase", "stability", "--bundle", str(bundle_dir), "--data", str(data), *QUICK]
    arguments += ["--lengths", "2500,3000", "--baselines", "recency,oracle", "--refocuses", "5", "--budget", "448"]
    result = CliRunner().invoke(app, [*arguments, "--history-tokens", "2000", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "needle" in result.stdout
    assert "swap_rate" in result.stdout
    assert "lensnet: " in result.stdout
    found = json.loads((out / "results.json").read_text())
    assert found["bundle"] == "tiny"
    assert found["settings"]["lengths"] == [2500, 3000]
    assert "cpu" in found["machine"]
    assert str(tmp_path) not in json.dumps(found)
    rows = found["rows"]
    assert {row["method"] for row in rows} == {"hybrid", "cross", "lexical", "recency", "oracle"}
    assert sum(row["suite"] == "needle" and row["method"] == "hybrid" and row["length"] == 3000 for row in rows) == 2
    assert all(row["gold_open"] for row in rows if row["method"] == "oracle")
    assert found["gate"]["lensnet"]["measured"] is True
    assert found["gate"]["gistnet"]["measured"] is False
    assert (out / "needle-hybrid-gold.svg").read_text().startswith("<svg")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["juggling", "--text", "x"], "suites must be of"),
        (["needle"], "data or text must be given"),
        (["nll", "--text", "x"], "give data"),
        (["needle", "--text", "x", "--lengths", "many"], "--lengths"),
        (["needle", "--text", "x", "--trials", "0"], "trials must be at least 1"),
        (["nll", "--data", "x", "--http", "http://localhost"], "a server has its own lens"),
        (["chat", "--data", "x", "--http", "http://localhost"], "a server has its own lens"),
        (["plain", "--text", "x", "--weights", "int3"], "weights must be one of"),
        (["plain", "--text", "x", "--one-chat"], "one_chat: a chat has one lens"),
        (["plain", "--text", "x", "--baselines", "rags"], "baselines must be of"),
    ],
)
def test_bad_options(arguments: list[str], message: str) -> None:
    """Each is one line that names the option."""
    result = CliRunner().invoke(app, ["eval", *arguments])
    assert result.exit_code != 0
    assert message in " ".join(result.output.replace("│", " ").split())


def test_a_server_is_asked_over_its_routes(bundle_dir: Path, bundle: Bundle, filler: Filler, tmp_path: Path) -> None:
    """Statements stand where the server says, questions leave no trace, and lexical search finds the needles."""
    plan = PlantPlan(4000, ("needle", "absent"), trials=3)
    histories = plant(np.random.default_rng(5), bundle.tokenizer, filler, plan)
    settings = settings_for(bundle_dir, tmp_path / "s.sqlite", lens="lexical", budget=960)
    with running(settings) as address, HttpDriver(address, None, None, bundle.tokenizer.decode) as driver:
        rows, skipped = ask_all(driver, histories, (METHOD,), {}, 3, lambda *told: None)
        assert skipped == {}
        assert Counter(row.gold_open for row in rows if row.suite == "absent") == {None: 2, True: 1}
        assert [row.gold_open for row in rows if row.suite == "needle"] == [True] * 3
        session = driver._call("GET", f"/v1/sessions/{driver._session}")
        assert session["tokens"] == driver._tokens
        for i, (start, end) in driver._spans.items():
            assert end - start == histories[0].spans[i][1] - histories[0].spans[i][0]
        with pytest.raises(MegaContextError, match="answered 404"):
            driver._call("GET", "/v1/sessions/none")


def test_the_command_over_http(bundle_dir: Path, data: Path, tmp_path: Path) -> None:
    """``--http`` measures the running server; a server that is not there is one line."""
    text = tmp_path / "text.txt"
    text.write_text("The captain sailed home through the storm at night. " * 60)
    arguments = ["eval", "needle", "--bundle", str(bundle_dir), "--text", str(text), *QUICK, "--lengths", "1500"]
    with running(settings_for(bundle_dir, tmp_path / "s.sqlite")) as address:
        result = CliRunner().invoke(app, [*arguments, "--http", address, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "server" in result.stdout
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {row["method"] for row in found["rows"]} == {"server"}
    assert any("asked over HTTP" in note for note in found["notes"])
    gone = CliRunner().invoke(app, [*arguments, "--http", address])
    assert gone.exit_code == 1
    assert gone.stderr.count("megacontext: GET") == 1


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights in one file, whose tokenizer puts a begin token before a text."""
    folder = tmp_path_factory.mktemp("gguf")
    tables = {"ggml.pre": "gpt-2", "ggml.eos_token_id": EOS, "ggml.bos_token_id": 0, "chat_template": CHATML}
    return write_gguf(
        folder / "tiny.gguf",
        tiny_decoder(vocab_size=VOCABULARY, max_position_embeddings=2048),
        "llama",
        tokenizer=tables_of(write_tokenizer(folder), "gpt2", **tables, **{"ggml.add_bos_token": True}),
    )


def test_a_gguf_file_is_evaluated(gguf: Path, data: Path, tmp_path: Path) -> None:
    """Suites that are planted, chats and measures run on a GGUF file, against all baselines; lexical finds the text."""
    out = tmp_path / "out"
    arguments = ["eval", "needle", "plain", "chat", "nll", "stability", "--bundle", str(gguf), "--data", str(data)]
    arguments += [*QUICK, "--lengths", "4000", "--budget", "1024", "--refocuses", "3", "--history-tokens", "1000"]
    result = CliRunner().invoke(app, [*arguments, "--nll-lengths", "1024", "--samples", "2", "--out", str(out)])
    assert result.exit_code == 0, result.output
    found = json.loads((out / "results.json").read_text())
    assert found["bundle"] == "tiny"
    by_suite = {suite: {row["method"] for row in found["rows"] if row["suite"] == suite} for suite in SUITES_ASKED}
    assert by_suite == {suite: {"lexical", "recency", "sinks", "oracle", "rag"} for suite in SUITES_ASKED}
    assert all(row["gold_open"] for row in found["rows"] if row["suite"] == "plain" and row["method"] == "lexical")
    assert {row["length"] for row in found["rows"]} == {4000, 7000}
    assert found["nll"]
    assert found["stability"]


def test_a_history_begins_as_an_ingested_text_does(gguf: Path, filler: Filler, tmp_path: Path) -> None:
    """Behind the tokenizer's begin token, in this process as at a server, and where truncation cut the text."""
    bundle = load_bundle(gguf)
    source = Filler([bundle.tokenizer.encode("The ship came home. " * 400)], bundle.tokenizer)
    (history,) = plant(np.random.default_rng(0), bundle.tokenizer, source, PlantPlan(3000, ("plain",), trials=2))
    assert len(history) == 3000
    assert history.ids[0] == bundle.tokenizer.prefix_ids[0] == 0
    store = SqliteStore(tmp_path / "eval.sqlite")
    with EngineDriver(bundle, FOCUS, store, prompt_of(bundle), (), ("recency",)) as driver:
        driver.read(history)
        session = driver._seats["recency"].session
        assert session.tree.ids(0, 1)[0] == 0
        assert np.array_equal(session.tree.ids(1, session.tokens), history.ids[1 - session.tokens :])
        assert driver._seats["recency"].shift((2990, 3000)) == (session.tokens - 10, session.tokens)
    store.close()
    settings = settings_for(gguf, tmp_path / "s.sqlite", budget=960)
    with running(settings) as address, HttpDriver(address, None, None, bundle.tokenizer.decode) as client:
        client.read(history)
        assert client._tokens == 3000
        assert tuple(client._spans[i] for i in range(2)) == history.spans


def test_what_is_to_be_tuned_on_is_asked_by_name_alone() -> None:
    """``all`` holds the held-out statements, the tuning set only where it is named."""
    config = SuitesConfig(suites=("all",), text=None, data=Path("x"))
    assert "plain" in config.questions
    assert "plain_tuning" not in config.questions
    assert SuitesConfig(suites=("plain_tuning",), data=Path("x")).questions == ("plain_tuning",)

"""The model that comes with the project: small, in plain files, and able to do what its card says."""

import json

import httpx
import pytest
import torch

from bench.common import bench_engine
from bench.evict import planted
from bench.recall import find_and_answer, plant
from bench.text import novel_ids, prose
from mc_core.models.attention import FullAttention
from mc_core.models.loading import load_decoder
from mc_core.models.rotary import Rotary
from mc_core.models.tokenizer import Tokenizer
from server.settings import BUNDLED_MODEL
from support import running, settings_for

MEBIBYTE = 1 << 20
NEEDLES, DIGITS, RIGHT = 20, 7, 0.8


def test_files():
    """Safetensors and text alone, below 64 MB, readable by all, with a card that names sources, licence and limits."""
    files = list(BUNDLED_MODEL.iterdir())
    assert {file.suffix for file in files} == {".json", ".md", ".safetensors"}
    assert sum(file.stat().st_size for file in files) < 64 * MEBIBYTE
    assert all(file.stat().st_mode & 0o444 == 0o444 for file in files)
    card = (BUNDLED_MODEL / "README.md").read_text()
    for words in ("license: cc-by-sa-4.0", "## Data", "## Training", "## Figures", "## Limits", "self_dialogue"):
        assert words in card
    figures = json.loads((BUNDLED_MODEL / "bundle.json").read_text())["evaluation"]["base"]
    assert figures["tokens"] > 0
    assert figures["recall"]


def test_transformers_computes_the_same():
    """Without the block mask it is a plain Qwen3, logits equal to 1e-4."""
    transformers = pytest.importorskip("transformers")
    ids = torch.from_numpy(Tokenizer.load(BUNDLED_MODEL).encode("The keeper of the lighthouse counted."))[None].long()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(BUNDLED_MODEL, dtype=torch.float32).eval()
    ours = load_decoder(BUNDLED_MODEL, torch.float32, "cpu")
    rotation = Rotary(ours.config).table(torch.arange(ids.shape[1]))
    with torch.no_grad():
        logits = ours.logits(ours(ours.embed(ids), FullAttention(rotation)))
        assert (theirs(ids).logits - logits).abs().max() < 1e-4


def test_a_chat_of_three_turns(tmp_path):
    """Each reply is words that end by themselves, and the third turn still knows the first one's session."""
    with running(settings_for(BUNDLED_MODEL, tmp_path / "s.sqlite", budget=1024)) as address:
        session = httpx.post(f"{address}/v1/sessions", json={}).json()["id"]
        tokens = 0
        for text in ("Hello! How are you?", "I like films. Do you?", "Which film do you like best?"):
            body = {"model": BUNDLED_MODEL.name, "session_id": session, "temperature": 0, "max_tokens": 200}
            body["messages"] = [{"role": "user", "content": text}]
            reply = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=60).json()
            assert reply["choices"][0]["finish_reason"] == "stop"
            assert len(reply["choices"][0]["message"]["content"].split()) >= 2
            assert reply["x_megacontext"]["tokens"] > tokens
            tokens = reply["x_megacontext"]["tokens"]


# Of the planted numbers the quick tests ask for each second one: a second's work each.
each = pytest.mark.parametrize("step", [2, pytest.param(1, marks=pytest.mark.slow)])


@each
def test_it_recalls_what_the_lens_opens(step):
    """A number planted in 50,000 tokens is opened by the first refocus, and most of the time told."""
    with bench_engine(BUNDLED_MODEL) as bench:
        ids, facts = plant(bench, novel_ids(bench.bundle.tokenizer, 50_000), NEEDLES, DIGITS, seed=1)
        session = bench.session("recall")
        tokens = bench.engine.ingest(session, ids).result()
        found = [find_and_answer(bench, session, fact, tokens) for fact in facts[::step]]
    assert all(is_open for is_open, _, _ in found)
    assert sum(is_right for _, _, is_right in found) >= RIGHT * len(found)


@each
def test_it_tells_what_was_said_in_plain_words(step):
    """What stands open is told, and not taken for something that was never mentioned."""
    text, facts = planted(prose(2_000), NEEDLES, seed=2)
    with bench_engine(BUNDLED_MODEL) as bench:
        session = bench.session("plain")
        tokens = bench.engine.ingest(session, bench.bundle.tokenizer.encode(text)).result()
        right = 0
        asked = list(facts.items())[::step]
        for key, value in asked:
            right += value in bench.ask(session, f"What is the magic number for {key}?", 24).text
            bench.engine.rewind(session, tokens).result()
    assert right >= RIGHT * len(asked)

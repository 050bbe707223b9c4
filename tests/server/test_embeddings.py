"""/v1/embeddings with the official client, of a tiny BERT: the vectors are those that transformers makes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from mc_core.errors import ConfigError
from mc_core.models.sentence_encoder import SentenceEncoder
from server.apis.embeddings.protocol import EmbeddingList
from server.embedder import BATCH_TOKENS, batches
from support import ServerThread, running, settings_for, state_in, wait_until
from tiny_encoder import POSITIONS, write_encoder

TEXTS = ["a keeper", "The lighthouse of Averby stands on a rock", "x", "größe 東京", "b" * 30 + " c d e"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoders") / "tiny-bert")


@pytest.fixture(scope="module")
def embedding_address(model_dir: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    store = tmp_path_factory.mktemp("store") / "s.sqlite"
    with running(settings_for(model_dir, store, encoder=str(folder), max_queue=32)) as address:
        yield address


@pytest.fixture
def embedder(embedding_address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{embedding_address}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


@torch.inference_mode()
def by_transformers(folder: Path, texts: list[str], *, first_token: bool = False) -> np.ndarray[Any, Any]:
    """As the model cards of sentence encoders tell it: the mean over the mask, of unit length."""
    given = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    hidden = AutoModel.from_pretrained(folder).eval()(**given).last_hidden_state
    mask = given["attention_mask"][..., None]
    pooled = hidden[:, 0] if first_token else (hidden * mask).sum(1) / mask.sum(1)
    vectors: np.ndarray[Any, Any] = torch.nn.functional.normalize(pooled, dim=-1).numpy()
    return vectors


@pytest.mark.parametrize("given", [{}, {"encoding_format": "float"}, {"dimensions": 24, "user": "ann"}])
def test_vectors_are_those_of_transformers(embedder: openai.OpenAI, folder: Path, given: dict[str, Any]) -> None:
    """Numbers or base64 (the client's default), of texts of any length together: the same vectors, in their order."""
    answer = embedder.embeddings.create(model="tiny-bert", input=TEXTS, **given)
    assert (answer.object, answer.model) == ("list", "tiny-bert")
    assert [(one.object, one.index) for one in answer.data] == [("embedding", i) for i in range(len(TEXTS))]
    vectors = np.array([one.embedding for one in answer.data], np.float32)
    np.testing.assert_allclose(vectors, by_transformers(folder, TEXTS), atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    lengths = AutoTokenizer.from_pretrained(folder)(TEXTS)["input_ids"]
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(map(len, lengths))


def test_one_text_is_a_list_of_one(embedder: openai.OpenAI, embedding_address: str) -> None:
    """A text by itself has the vector that it has among others; bodies are as described."""
    (alone,) = embedder.embeddings.create(model="tiny-bert", input=TEXTS[0]).data
    among = embedder.embeddings.create(model="tiny-bert", input=TEXTS).data[0]
    np.testing.assert_allclose(alone.embedding, among.embedding, atol=2e-6)
    for kind in ("float", "base64"):
        body = {"model": "tiny-bert", "input": "a b", "encoding_format": kind}
        raw = httpx.post(f"{embedding_address}/v1/embeddings", json=body).json()
        EmbeddingList.model_validate(raw, strict=True)
        assert isinstance(raw["data"][0]["embedding"], str) == (kind == "base64")


@pytest.mark.parametrize(
    ("given", "param", "words"),
    [
        ({"input": ""}, "input", "at least 1"),
        ({"input": []}, "input", "at least 1"),
        ({"input": ["a", ""]}, "input.1", "at least 1"),
        ({"input": [1, 2]}, "input", "token ids are of a tokenizer that this server does not know"),
        ({"input": [[1, 2]]}, "input", "token ids are of a tokenizer that this server does not know"),
        ({"input": ["a"] * 2049}, "input", "2048"),
        ({"input": "a " * POSITIONS}, "input", f"50 tokens, but tiny-bert reads {POSITIONS} at most"),
        ({"input": ["a", "a " * POSITIONS]}, "input.1", f"reads {POSITIONS} at most"),
        ({"input": "a" * 4_000_001}, "input", "4,000,000 characters"),
        ({"dimensions": 12}, "dimensions", "24 numbers and cannot be cut to 12"),
        ({"encoding_format": "int8"}, "encoding_format", "'float' or 'base64'"),
        ({"extra_body": {"truncate": True}}, "truncate", "not supported"),
    ],
)
def test_what_cannot_be_done_is_refused(embedder: openai.OpenAI, given: dict[str, Any], param: str, words: str) -> None:
    """400 names the field and its limit; nothing is cut in silence."""
    with pytest.raises(openai.BadRequestError, match=words) as refused:
        embedder.embeddings.create(**{"model": "tiny-bert", "input": "a", "encoding_format": "float", **given})
    assert refused.value.param == param


def test_the_encoder_is_listed_and_answers_by_its_name_alone(embedder: openai.OpenAI) -> None:
    """/v1/models has the model first and the encoder behind it; neither does the other's work."""
    assert [one.id for one in embedder.models.list()] == ["tiny", "tiny-bert"]
    about: Any = embedder.models.retrieve("tiny-bert").model_extra
    assert about["x_megacontext"] == {"dimensions": 24, "max_input_tokens": POSITIONS}
    with pytest.raises(openai.NotFoundError, match="'tiny' makes no embeddings here; 'tiny-bert' does") as lost:
        embedder.embeddings.create(model="tiny", input="a")
    assert (lost.value.code, lost.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        embedder.chat.completions.create(model="tiny-bert", messages=[{"role": "user", "content": "Hi"}])


@pytest.mark.slow
def test_frameworks_get_the_same_vectors(embedding_address: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """litellm and LangChain, which is told to send text, read the same vectors."""
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    litellm = pytest.importorskip("litellm", reason="an extra of its own: pip install '.[clients]'")
    langchain = pytest.importorskip("langchain_openai", reason="an extra of its own: pip install '.[clients]'")
    at = {"base_url": f"{embedding_address}/v1", "api_key": "none"}
    told = litellm.embedding(model="openai/tiny-bert", input=TEXTS, api_base=at["base_url"], api_key="none")
    chained = langchain.OpenAIEmbeddings(model="tiny-bert", check_embedding_ctx_length=False, **at)
    for vectors in ([one["embedding"] for one in told.data], chained.embed_documents(TEXTS)):
        np.testing.assert_allclose(vectors, by_transformers(folder, TEXTS), atol=2e-6)


def test_without_an_encoder(client: openai.OpenAI) -> None:
    """404 says what is missing, with a code of its own."""
    with pytest.raises(openai.NotFoundError, match="start it with --encoder") as lost:
        client.embeddings.create(model="tiny", input="a")
    assert lost.value.code == "no_encoder"


async def test_requests_take_turns(embedding_address: str, folder: Path) -> None:
    """Many at once are all answered right: what one asks for is never another's."""
    wanted = by_transformers(folder, TEXTS)
    async with openai.AsyncOpenAI(base_url=f"{embedding_address}/v1", api_key="none", timeout=60) as client:
        asked = [client.embeddings.create(model="tiny-bert", input=TEXTS[i % 5]) for i in range(20)]
        for i, answer in enumerate(await asyncio.gather(*asked)):
            np.testing.assert_allclose(answer.data[0].embedding, wanted[i % 5], atol=2e-6)


def test_the_queue_has_an_end(model_dir: Path, folder: Path, tmp_path: Path) -> None:
    """As many requests as may wait do, the next is told to come again, and the server answers others meanwhile; one
    whose client goes away makes room."""
    settings = settings_for(model_dir, tmp_path / "s.sqlite", encoder=str(folder), max_queue=0)
    busy, body = Event(), {"model": "tiny-bert", "input": "a"}
    with ServerThread(settings) as server, ThreadPoolExecutor(1) as pool:
        embedder = state_in(server).embedder
        assert embedder is not None
        embedder._pool.submit(busy.wait)
        try:
            waits = pool.submit(httpx.post, f"{server.address}/v1/embeddings", json=body, timeout=60)
            wait_until(lambda: embedder._requests == 1)
            refused = httpx.post(f"{server.address}/v1/embeddings", json=body)
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
            assert httpx.get(f"{server.address}/health").status_code == 200
        finally:
            busy.set()
        assert waits.result().status_code == 200
        busy.clear()
        embedder._pool.submit(busy.wait)
        try:
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{server.address}/v1/embeddings", json=body, timeout=0.5)
            wait_until(lambda: embedder._requests == 0)
        finally:
            busy.set()


def test_batches_hold_every_row_once() -> None:
    """All rows, each once, in batches that are no larger than they may be, unless one text alone is."""
    lengths = [5, 512, 7, 8_000, *range(1, 300)]
    made = list(batches(lengths))
    assert sorted(row for rows in made for row in rows) == list(range(len(lengths)))
    assert all(len(rows) == 1 or max(lengths[row] for row in rows) * len(rows) <= BATCH_TOKENS for rows in made)


def test_pooling_as_the_folder_says_it(folder: Path, tmp_path: Path) -> None:
    """Files of sentence-transformers choose the first token, and a shorter text; what they ask beyond is refused."""
    own = write_encoder(tmp_path / "own")
    (own / "1_Pooling").mkdir()
    pooling = own / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}))
    (own / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 16}))
    encoder = SentenceEncoder.load(own)
    assert encoder.max_tokens == 16
    np.testing.assert_allclose(encoder.encode(TEXTS), by_transformers(own, TEXTS, first_token=True), atol=2e-6)
    pooling.write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(ConfigError, match="pooled by pooling_mode_max_tokens"):
        SentenceEncoder.load(own)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda own: (own / "config.json").unlink(), "has no config.json"),
        (lambda own: (own / "tokenizer.json").unlink(), "has no tokenizer.json"),
        (lambda own: (own / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda own: (own / "config.json").write_text('{"model_type": "llama"}'), "is a llama; supported are"),
        (lambda own: (own / "config.json").write_text("{"), "is no JSON"),
        (lambda own: (own / "modules.json").write_text('[{"type": "x.Dense"}]'), "not supported: Dense"),
        (lambda own: deepen(own), "lacks weights: encoder.layer.2"),
    ],
)
def test_folders_that_hold_no_encoder(tmp_path: Path, change: Any, words: str) -> None:
    """What could only be used wrong is refused at the start, with its reason."""
    own = write_encoder(tmp_path / "own")
    change(own)
    with pytest.raises(ConfigError, match=words):
        SentenceEncoder.load(own)


def deepen(own: Path) -> None:
    """Another layer, of which there are no weights."""
    config = own / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "num_hidden_layers": 3}))

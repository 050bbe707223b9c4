"""Model folders as they are found: templates that fail, end tokens in odd places, tokens above the vocabulary."""

import json

import httpx
import openai
import pytest

from gguf_writer import tables_of, tiny_decoder, write_gguf
from mc_core.models.tokenizer import Tokenizer
from support import CHATML, EOS, VOCABULARY, ServerThread, settings_for, write_model, write_tokenizer

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}


def settings_of(folder, **changes):
    """Change tokenizer_config.json; None removes a key."""
    path = folder / "tokenizer_config.json"
    settings = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in settings.items() if value is not None}))


def config_of(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_broken_template_fails_chat_alone(tmp_path, caplog):
    """The server starts and continues texts; chat is told what is wrong and in which line, and the log says it once."""
    model = write_model(
        tmp_path / "tiny", template="{{ bos_token }}\n{% for m in messages %}{{ m.content | nonsense }}"
    )
    with ServerThread(settings_for(model, tmp_path / "a.sqlite")) as server:
        assert sum("line 2" in record.getMessage() for record in caplog.records) == 1
        told = httpx.post(f"{server.address}/v1/chat/completions", json=CHAT)
        assert (told.status_code, told.json()["error"]["code"]) == (400, "chat_template_error")
        assert "line 2" in told.json()["error"]["message"]
        body = {"model": "tiny", "prompt": "It was", "max_tokens": 2}
        assert httpx.post(f"{server.address}/v1/completions", json=body).status_code == 200


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """Closes turns with a token that is not its configured end, adds a begin token and has a token too many."""
    model = write_model(tmp_path_factory.mktemp("odd") / "tiny", template=CHATML)
    settings_of(model, eos_token=None, bos_token="<|endoftext|>")
    config_of(model, eos_token_id=1)
    spec = json.loads((model / "tokenizer.json").read_text())
    bos = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
    spec["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}},
    }
    pad = {**spec["added_tokens"][0], "content": "<|pad|>", "id": len(spec["model"]["vocab"])}
    spec["added_tokens"].append(pad)
    (model / "tokenizer.json").write_text(json.dumps(spec))
    with ServerThread(settings_for(model, tmp_path_factory.mktemp("store") / "a.sqlite")) as server:
        yield server.address, Tokenizer.load(model)


def test_the_token_that_a_template_closes_replies_with_ends_them(odd):
    """Whatever the configuration says; and stop strings find special tokens where ignore_eos lets them pass."""
    address, _ = odd
    bias = {"logit_bias": {"2": 100}, "max_tokens": 12, "seed": 1}
    reply = httpx.post(f"{address}/v1/chat/completions", json={**CHAT, **bias}).json()
    assert (reply["choices"][0]["finish_reason"], reply["usage"]["completion_tokens"]) == ("stop", 1)
    for more, reason, count in [({}, "length", 12), ({"stop": ["<|im_end|><|im_end|>"]}, "stop", 2)]:
        body = {**CHAT, **bias, "ignore_eos": True, **more}
        reply = httpx.post(f"{address}/v1/chat/completions", json=body).json()
        assert (reply["choices"][0]["finish_reason"], reply["usage"]["completion_tokens"]) == (reason, count)
        assert reply["choices"][0]["message"]["content"] == ""


def test_a_text_begins_with_the_begin_token_wherever_it_comes_from(odd):
    """A prompt has it as an ingested text has, once; a text that goes on has none."""
    address, tokenizer = odd
    text = "It was the best of times"
    count = 1 + len(tokenizer.encode(text))
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        ask = {"model": "tiny", "prompt": text, "max_tokens": 1}
        assert client.completions.create(**ask).usage.prompt_tokens == count
        session = httpx.post(f"{address}/v1/sessions", json={}).json()["id"]
        added = httpx.post(f"{address}/v1/sessions/{session}/ingest", json={"text": text}).json()["tokens"]
        assert added == count
        usage = client.completions.create(**ask, extra_body={"session_id": session}).usage
        assert usage.prompt_tokens == 2 * count - 1


def test_a_gguf_file_is_served_with_its_own_template_or_another(tmp_path):
    """A GGUF file alone makes a model that chats; ``chat_template`` names a file that takes its template's place."""
    raw = write_tokenizer(tmp_path / "source", CHATML)
    more = {"ggml.pre": "gpt-2", "ggml.eos_token_id": EOS, "chat_template": "{{ raise_exception('not this one') }}"}
    path = write_gguf(
        tmp_path / "tiny.gguf",
        tiny_decoder(vocab_size=VOCABULARY, max_position_embeddings=1024),
        "llama",
        tokenizer=tables_of(raw, "gpt2", **more),
    )
    with ServerThread(settings_for(path, tmp_path / "a.sqlite")) as server:
        refused = httpx.post(f"{server.address}/v1/chat/completions", json=CHAT)
        assert (refused.status_code, "not this one" in refused.text) == (400, True)
    template = tmp_path / "chatml.jinja"
    template.write_text(CHATML)
    with ServerThread(settings_for(path, tmp_path / "a.sqlite", chat_template=template)) as server:
        told = httpx.post(f"{server.address}/v1/chat/completions", json={**CHAT, "max_tokens": 4, "logprobs": True})
        assert told.status_code == 200
        expected = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
        assert told.json()["usage"]["prompt_tokens"] == len(raw.encode(expected).ids)

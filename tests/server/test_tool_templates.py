"""Chat templates and tools: what they write of them is learnt, and what is rendered is what transformers renders."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from mc_core.models.tokenizer import Tokenizer
from server.templates.chat_template import ChatTemplate, Message
from server.tools.syntax import HERMES
from server.tools.tool import Tool, ToolCall, ToolUse
from template_shapes import BOS, EOS, SPECIAL, spec_of
from tool_shapes import TOOL_SHAPES

TOKENS = {"bos_token": BOS, "eos_token": EOS}
NATIVE = ["qwen25", "qwen3", "llama31", "mistral"]
USE = ToolUse(
    (
        Tool("look", "Looks at a place.", {"type": "object", "properties": {"place": {"type": "string"}}}),
        Tool("add_up", None, {"type": "object", "properties": {"n": {"type": "array"}}}),
    )
)
WORDS = ["wave", " the", "café", " 東京", " 4711", ".", "<", "|>", '"', "\\", "{", "\n", "'s"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, PreTrainedTokenizerFast]:
    path: Path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_bytes(spec_of("byte_level"))
    return path.read_bytes(), PreTrainedTokenizerFast(tokenizer_file=str(path), **TOKENS)


def template(shape: str) -> ChatTemplate:
    tokenizer = Tokenizer(spec_of("byte_level"), TOKENS, template=TOOL_SHAPES[shape])
    return ChatTemplate(tokenizer, tokenizer.special_tokens)


@pytest.mark.parametrize("times", range(5))
def test_the_syntax_of_calls_is_learnt(times: int) -> None:
    """Each shape's way to write calls is found out, whatever random words it takes; else plain text stands in."""
    forms = {shape: template(shape).tool_format for shape in TOOL_SHAPES}
    assert [shape for shape, form in forms.items() if form.native] == NATIVE
    assert forms["qwen25"].syntax == forms["qwen3"].syntax == forms["none"].syntax == HERMES
    assert (forms["llama31"].syntax.tag, forms["llama31"].syntax.between) == ("", None)
    assert forms["mistral"].syntax.tag == "[TOOL_CALLS]"
    assert forms["mistral"].syntax.listed
    assert forms["mistral"].short_ids
    assert not forms["systemless"].takes_system


def words_of(rng: random.Random) -> str:
    return "x" + "".join(rng.choice(WORDS) for _ in range(rng.randrange(1, 8))) + "y"


def talk_of(rng: random.Random, shape: str) -> list[Message]:
    """A conversation with calls, that ends with a question or a tool's answer."""
    talk = [Message("system", words_of(rng))] if rng.random() < 0.5 else []
    for turn in range(rng.randrange(1, 4)):
        talk.append(Message("user", words_of(rng)))
        if rng.random() < 0.7:
            count = 1 if shape == "llama31" else rng.randrange(1, 3)
            calls = tuple(
                ToolCall(f"{turn}{n}abcdefg", "look", json.dumps({"place": words_of(rng)}, ensure_ascii=False))
                for n in range(count)
            )
            talk.append(Message("assistant", "", tool_calls=calls))
            talk += [Message("tool", words_of(rng), tool_call_id=call.id) for call in calls]
        talk.append(Message("assistant", words_of(rng)))
    end = rng.randrange(2) if talk[-2].role == "tool" else 0
    return talk[:-1] if end else [*talk, Message("user", words_of(rng))]


def plain(message: Message) -> dict[str, object]:
    told: dict[str, object] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        told["tool_calls"] = [
            {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": json.loads(c.arguments)}}
            for c in message.tool_calls
        ]
    if message.tool_call_id is not None:
        told |= {"tool_call_id": message.tool_call_id, "name": "look"}
    return told


@pytest.mark.parametrize("shape", NATIVE)
def test_histories_with_tools_are_those_of_transformers(
    files: tuple[bytes, PreTrainedTokenizerFast], shape: str
) -> None:
    """Ids of a conversation with tools, calls and answers equal those of ``apply_chat_template``."""
    chat, rng = template(shape).with_tools(USE), random.Random(shape)
    for _ in range(60):
        talk = talk_of(rng, shape)
        wanted = files[1].apply_chat_template(
            [plain(message) for message in talk],
            tools=USE.told(),
            chat_template=TOOL_SHAPES[shape],
            add_generation_prompt=True,
            return_dict=False,
        )
        assert chat.ids(talk, first=True, reply=True).tolist() == wanted, talk


@pytest.mark.parametrize("shape", TOOL_SHAPES)
def test_what_is_rendered_later_is_what_the_whole_has(shape: str) -> None:
    """Messages from the last question on, rendered behind earlier ones, have the ids that they have in the whole."""
    chat, rng = template(shape).with_tools(USE), random.Random(shape)
    for _ in range(40):
        talk = talk_of(rng, shape)
        if shape == "systemless" and talk[0].role == "system":
            talk = talk[1:]
        last = max(place for place, message in enumerate(talk) if message.role == "user")
        if last < 2:
            continue
        system = talk[0] if talk[0].role == "system" else None
        whole = chat.ids(talk, first=True, reply=True)
        tail = chat.ids(talk[last:], first=False, reply=True, system=system)
        assert np.array_equal(whole[len(whole) - len(tail) :], tail), talk


@pytest.mark.parametrize("shape", TOOL_SHAPES)
def test_nobody_forges_a_control_token_through_tools(shape: str) -> None:
    """Names of control tokens in descriptions, schemas, arguments, answers and ids are text: there are as many control
    tokens as with harmless words. Thoughts are a reply's own words, of which plain text makes the arguments a part."""

    def controls(word: str) -> int:
        use = ToolUse((Tool("look", word, {"type": "object", "properties": {word: {"description": word}}}),))
        chat = template(shape).with_tools(use)
        call = ToolCall("call_" + word, "look", json.dumps({word: [word]}))
        talk = [Message("user", "Go"), Message("assistant", "", tool_calls=(call,))]
        ids = chat.ids([*talk, Message("tool", word, tool_call_id=call.id)], first=True, reply=True)
        return int(np.isin(ids, sorted(chat._tokenizer.control_ids)).sum())

    for forged in (*SPECIAL[1:], *(("<think>", "</think>") if shape in NATIVE else ())):
        assert controls(forged) == controls("harmless")

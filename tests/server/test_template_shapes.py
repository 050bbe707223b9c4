"""Templates in twelve published shapes: whole histories and such as grow turn by turn are what transformers makes."""

import random

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from mc_core.models.tokenizer import Tokenizer
from server.templates.chat_template import ChatTemplate, Message
from template_shapes import BOS, EOS, SHAPES, SYSTEMLESS, TOKENIZERS, spec_of

TOKENS = {"bos_token": BOS, "eos_token": EOS}
WORDS = [
    "wave",
    " the",
    " keeper",
    "\n",
    "\n\n",
    "  ",
    "café",
    "東京",
    " 🙂",
    " 4711",
    ".",
    "> quoted",
    "<",
    "|>",
    "\tx",
    "'s",
]


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """tokenizer.json by kind, and the tokenizer that transformers makes of it."""
    made = {}
    for kind in TOKENIZERS:
        path = tmp_path_factory.mktemp(kind) / "tokenizer.json"
        path.write_bytes(spec_of(kind))
        made[kind] = path.read_bytes(), PreTrainedTokenizerFast(tokenizer_file=str(path), **TOKENS)
    return made


def template_of(raw, kind, shape):
    tokenizer = Tokenizer(raw[kind][0], TOKENS, template=SHAPES[shape])
    return ChatTemplate(tokenizer, tokenizer.special_tokens), tokenizer


def text_of(rng):
    return "".join(rng.choice(WORDS) for _ in range(rng.randrange(1, 8)))


def reply_of(rng):
    thought = f"<think>\n{text_of(rng)}\n</think>\n\n" if rng.random() < 0.3 else ""
    return thought + text_of(rng)


def history_of(rng, shape):
    """A conversation that ends with a question, at times under a system message."""
    talk = [Message("system", text_of(rng))] if shape not in SYSTEMLESS and rng.random() < 0.5 else []
    for _ in range(rng.randrange(0, 4)):
        talk += [Message("user", text_of(rng)), Message("assistant", reply_of(rng))]
    return [*talk, Message("user", text_of(rng))]


def oracle(raw, kind, shape, messages, reply=True):
    talk = [{"role": m.role, "content": m.content} for m in messages]
    return raw[kind][1].apply_chat_template(
        talk, chat_template=SHAPES[shape], add_generation_prompt=reply, return_dict=False
    )


def grown(chat, messages):
    """Turn by turn: with each question the last exchange is written anew, as one that is not the last any more."""
    system = messages[0] if messages[0].role == "system" else None
    turns = messages[1:] if system else messages
    start, ids = 0, np.empty(0, np.int32)
    for n in range(0, len(turns), 2):
        window = max(n - 2, 0)
        new = chat.ids(turns[window : n + 1], first=window == 0, reply=True, system=system)
        ids = np.concatenate([ids[:start], new])
        if n:
            question = chat.ids(turns[n : n + 1], first=False, reply=True, system=system)
            start = len(ids) - len(question)
            assert np.array_equal(ids[start:], question)
    return ids


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_whole_histories_are_those_of_transformers(raw, kind, shape):
    """Ids of a whole conversation equal those of ``apply_chat_template``."""
    chat, _ = template_of(raw, kind, shape)
    rng = random.Random(shape)
    for _ in range(200 if kind == "byte_level" else 40):
        messages = history_of(rng, shape)
        ids = chat.ids(messages, first=True, reply=True)
        assert ids.tolist() == oracle(raw, kind, shape, messages), messages


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_growing_histories_are_those_of_transformers(raw, kind, shape):
    """A conversation built turn by turn has the ids that it has as a whole."""
    chat, _ = template_of(raw, kind, shape)
    rng = random.Random(shape)
    for _ in range(200 if kind == "byte_level" else 40):
        messages = history_of(rng, shape)
        assert grown(chat, messages).tolist() == oracle(raw, kind, shape, messages), messages

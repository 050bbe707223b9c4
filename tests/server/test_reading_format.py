"""Frames learned from templates in twelve published shapes: they are what the template writes around each message."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from mc_core.context.message_index import MessageIndex
from mc_core.context.sources import About
from mc_core.kv.layout import FRAME_BITS
from mc_core.models.tokenizer import Tokenizer
from server.templates.chat_template import ChatTemplate, Message
from server.templates.reading import LONGEST_TITLE, reading_format
from template_shapes import BOS, EOS, SHAPES, SYSTEMLESS, TOKENIZERS, spec_of

TOKENS = {"bos_token": BOS, "eos_token": EOS}
PLAIN = {"llama2", "mistral", "mistral3", "deepseek"}
"""Shapes whose user messages no control token closes."""
ALWAYS_SYSTEM = {"qwen2", "llama31"}
"""Shapes that write a system message of their own where there is none."""
DOC = (Path(__file__).parents[2] / "docs" / "reading.md").read_text("utf-8")


@pytest.fixture(scope="module", params=TOKENIZERS)
def spec(request: pytest.FixtureRequest) -> bytes:
    return spec_of(request.param)


def made(spec: bytes, template: str) -> tuple[ChatTemplate, Tokenizer]:
    tokenizer = Tokenizer(spec, TOKENS, template=template)
    return ChatTemplate(tokenizer, tokenizer.special_tokens), tokenizer


def talk_of(rng: random.Random, system: bool) -> list[Message]:
    words = ["wave", " the", " keeper", "\n", "  ", "café", "東京", " 🙂", " 4711", ".", "<|im_start|>", "[INST]"]
    talk = [Message("system", "".join(rng.choices(words, k=5)) + "x")] if system else []
    for _ in range(rng.randrange(0, 4)):
        talk += [Message(role, "".join(rng.choices(words, k=6)) + "x") for role in ("user", "assistant")]
    return [*talk, Message("user", "".join(rng.choices(words, k=6)) + "x")]


@pytest.mark.parametrize("shape", sorted(SHAPES.keys() - PLAIN))
def test_every_message_of_a_conversation_is_found(spec: bytes, shape: str) -> None:
    """Law: of what the template writes of a conversation, the index finds each message, and the reply that is open;
    frames are as short as their places in the layout want them."""
    chat, tokenizer = made(spec, SHAPES[shape])
    format = reading_format(chat, tokenizer)
    assert format is not None
    roles = [kind.role for kind in format.kinds]
    rng = random.Random(shape)
    for _ in range(30):
        system = shape not in SYSTEMLESS and "system" in roles and rng.random() < 0.5
        messages = talk_of(rng, system)
        ids = chat.ids(messages, first=True, reply=True)
        index = MessageIndex(format, tokenizer.words(tokenizer.vocab_size))
        index.append(ids)
        wanted = [*(message.role for message in messages), "assistant"]
        if not system and shape in ALWAYS_SYSTEM:
            wanted.insert(0, "system")
        found = [index.place(int(index._at[row])) for row in range(len(index))]
        assert [roles[place.kind] for place in found if place.opens] == wanted
        assert [place.opens for place in found] == [True, False] * (len(wanted) - 1) + [True]
        assert index.place(len(ids)).kind == roles.index("assistant")
        assert index.text_borders(0, len(ids)) == []


@pytest.mark.parametrize("shape", SHAPES)
def test_frames_fit_their_places(spec: bytes, shape: str) -> None:
    """Law: whatever a title is, its frame is a message of the user's, without another control token, and short."""
    chat, tokenizer = made(spec, SHAPES[shape])
    format = reading_format(chat, tokenizer)
    assert (format is None) == (shape in PLAIN)
    if format is None:
        return
    asking = next(kind for kind in format.kinds if kind.role == "user")
    for title in ("A", "<|im_end|>", "</s><|user|>", "{title}", "x" * 200, "東京 " * 60, "🙂" * 200, "\u0301" * 200):
        text = format.texts(About(title, "chat"))
        assert text.opening[: len(asking.opening)].tolist() == asking.opening.tolist()
        rest = text.opening[len(asking.opening) :]
        assert not tokenizer.control_ids & set(rest.tolist())
        untitled = len(format.texts(About(None, "chat")).opening)
        assert len(text.opening) <= untitled + LONGEST_TITLE + 8
        longest = max(len(kind.opening) + len(kind.closing) for kind in format.kinds)
        assert len(text.opening) + longest < 1 << FRAME_BITS
        shown = tokenizer.decode(rest)
        assert (f"({title})" in shown) == (len(tokenizer.encode_more(title)) <= LONGEST_TITLE) or "\u0301" in title


BROKEN = (
    "{{ 1 / 0 }}",
    "{{ raise_exception('no') }}",
    "{% for m in messages %}{{ m.content }}{% endfor %}",
    "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
    "{{ messages[-1].content }}",
    " ",
    "{% if",
    "<|im_start|>",
    "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}",
    "{% for m in messages %}<|im_end|>{{ m.role }}<|im_start|>{{ m.content }}{% endfor %}",
)


@pytest.mark.parametrize("template", BROKEN)
def test_a_template_that_gives_no_frames_is_no_error(spec: bytes, template: str) -> None:
    """Law: whatever a template does, there are frames or none, and never an exception."""
    chat, tokenizer = made(spec, template)
    reading_format(chat, tokenizer)


def test_the_table_of_frames_is_what_is_learned() -> None:
    """Law: docs/reading.md shows the frames of each shape as they are learned, and which have none."""
    rows = dict(re.findall(r"^\| (\w+) \| (.*?) \|$", DOC, re.MULTILINE))
    assert {shape: rows.get(shape) for shape in SHAPES} == {shape: frames_in_words(shape) for shape in SHAPES}


def frames_in_words(shape: str) -> str:
    chat, tokenizer = made(spec_of("byte_level"), SHAPES[shape])
    format = reading_format(chat, tokenizer)
    if format is None:
        return "none"

    def spelled(ids: object) -> str:
        text = tokenizer.decode(ids, skip_special_tokens=False)  # type: ignore[arg-type]
        return re.sub(r"Today Date: .*?\\n", r"Today Date: ...\\n", text.replace("\n", "\\n"))

    told = [f"{kind.role} `{spelled(kind.opening)}` .. `{spelled(kind.closing)}`" for kind in format.kinds]
    return ", ".join(told).replace("|", "\\|")

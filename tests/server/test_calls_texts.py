"""A table of texts and models that programs ask for with the official OpenAI client; and addresses that are none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import openai
import pytest

from client_rows import AAAA, SAY_A, A, Refused, Row, cases, check
from mc_core.models.tokenizer import Tokenizer

SMALL: dict[str, Any] = {"model": "tiny", "max_tokens": 4, "temperature": 0}
CALLS: dict[str, Callable[..., Any]] = {
    "text": lambda client, **given: client.completions.create(**{"prompt": "Hi", **SMALL, **given}),
    "text stream": lambda client, **given: list(
        client.completions.create(**{"prompt": "Hi", "stream": True, **SMALL, **given})
    ),
    "models": lambda client, **given: client.models.list(**given),
    "model": lambda client, **given: client.models.retrieve(**given),
}


def texts(*wanted: str) -> Callable[[Any], bool]:
    return lambda answer: (
        answer.object == "text_completion"
        and [(one.index, one.text, one.finish_reason) for one in answer.choices]
        == [(place, text, "length") for place, text in enumerate(wanted)]
    )


ROWS: list[Row] = [
    ("text", SAY_A, texts(AAAA)),
    ("text", {**SAY_A, "prompt": ["Hi", "Ho"]}, texts(AAAA, AAAA)),
    ("text", {**SAY_A, "prompt": [[40, 41], [42]]}, texts(AAAA, AAAA)),
    ("text", {**SAY_A, "echo": False, "best_of": 1, "n": 1, "user": "ann", "seed": 3}, texts(AAAA)),
    ("text", {**SAY_A, "logprobs": 1}, lambda a: a.choices[0].logprobs.tokens == ["a"] * 4),
    ("text stream", SAY_A, lambda chunks: "".join(one.choices[0].text for one in chunks) == AAAA),
    ("models", {}, lambda page: [(one.id, one.object) for one in page] == [("tiny", "model")]),
    ("model", {"model": "tiny"}, lambda model: model.id == "tiny" and model.created > 0),
    # What is refused names itself.
    ("text", {"n": 2}, Refused("n")),
    ("text", {"best_of": 3}, Refused("best_of")),
    ("text", {"echo": True}, Refused("echo")),
    ("text", {"suffix": "end"}, Refused("suffix")),
    ("models", {"extra_query": {"limt": 3}}, Refused("limt")),
]


@pytest.mark.parametrize(("call", "given", "expected"), cases(ROWS))
def test_calls(client: openai.OpenAI, call: str, given: dict[str, Any], expected: Any) -> None:
    """Each call is answered with what it asks for, or refused with the name of what cannot be had."""
    patient = client.with_options(max_retries=5)
    check(lambda **all_of_it: CALLS[call](patient, **all_of_it), given, expected)


def test_the_token_that_replies_are_made_of(tokenizer: Tokenizer) -> None:
    """The tables stand on the ids of some tokens."""
    assert [tokenizer.token_bytes(token) for token in (A, 95, 4)] == [b"a", b"}", b'"']


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/v1/nothing", "there is no GET /v1/nothing on this server"),
        ("/chat/completions", "did you mean /v1/chat/completions"),
    ],
)
def test_an_address_that_is_not_there_is_named(client: openai.OpenAI, address: str, path: str, words: str) -> None:
    """404 in OpenAI's shape names the address, and where to find those that there are."""
    with pytest.raises(openai.NotFoundError, match=words) as lost:
        client.with_options(base_url=address).get(path, cast_to=object)
    assert "/openapi.json" in lost.value.message
    assert lost.value.code == "http_error"

"""Long chats: rendered as the server renders them, with every statement where its span says."""

from __future__ import annotations

import numpy as np
import pytest

from mc_core.bundle.bundle import Bundle
from mc_core.errors import ConfigError
from mc_core.lab.evaluation.chats import TURNS, chat_histories, span_of
from mc_core.lab.tasks.filler import Filler
from mc_core.lab.tasks.history import History
from mc_core.lab.tasks.plain import chats
from server.commands.lab.eval_prompt import LinePrompt, prompt_of
from server.templates.chat_template import ChatTemplate, Message


@pytest.fixture(scope="module")
def histories(bundle: Bundle, filler: Filler) -> list[History]:
    return chat_histories(np.random.default_rng(4), bundle.tokenizer, filler, prompt_of(bundle), 15)


def test_as_many_questions_as_were_asked_for(histories: list[History], bundle: Bundle, filler: Filler) -> None:
    """Over as few chats as hold them, all different; all there are if more are asked for."""
    assert [len(history.questions) for history in histories] == [6, 6, 3]
    assert len({question.asked.question for history in histories for question in history.questions}) == 15
    assert {history.length for history in histories} == {7000}
    every = chat_histories(np.random.default_rng(4), bundle.tokenizer, filler, prompt_of(bundle), 10_000)
    assert sum(len(history.questions) for history in every) == sum(len(chat.told) for chat in chats())


def test_each_statement_stands_where_its_span_says(histories: list[History], bundle: Bundle) -> None:
    """Its tokens spell it, in one of the first turns; 40 turns of both sides in all, by the model's template."""
    tokenizer = bundle.tokenizer
    for history in histories:
        text = tokenizer.decode(history.ids, skip_special_tokens=False)
        assert text.count("<|im_start|>user\n") == text.count("<|im_start|>assistant\n") == TURNS
        assert "{text}" not in text
        for question in history.questions:
            start, end = history.spans[question.gold[0]]
            assert question.asked.answer in tokenizer.decode(history.ids[start:end])
            assert question.asked.answer not in tokenizer.decode(history.ids[start + 1 : end])
            assert question.asked.answer not in tokenizer.decode(history.ids[start : end - 1])
            turns = tokenizer.decode(history.ids[:start], skip_special_tokens=False).count("<|im_start|>user\n")
            assert turns <= 6


def test_a_chat_is_what_the_server_would_have_read(bundle: Bundle) -> None:
    """Turn by turn, each behind those before it, a template gives the ids that it gives for the whole."""
    template = ChatTemplate(bundle.tokenizer, bundle.tokenizer.special_tokens)
    prompt = prompt_of(bundle)
    turns = [("Hello there", "Hi!"), ("It rains.", "So it does."), ("Bye", "Bye")]
    parts = []
    for number, (said, reply) in enumerate(turns):
        ids = template.ids([Message("user", said)], first=not number, reply=True)
        parts += [ids, bundle.tokenizer.encode(reply), template.suffix_ids]
    assert np.array_equal(prompt.chat(turns), np.concatenate(parts))
    assert np.array_equal(prompt("Bye")[0], template.ids([Message("user", "Bye")], first=False, reply=True))
    assert np.array_equal(prompt.alone("Bye")[0], template.ids([Message("user", "Bye")], first=True, reply=True))


def test_without_a_template_turns_are_lines(bundle: Bundle) -> None:
    """What is said and what is replied stand in lines of their own; the question begins one."""
    prompt = LinePrompt(bundle.tokenizer)
    assert bundle.tokenizer.decode(prompt.chat([("Hello", "Hi"), ("So", "Yes")])) == "Hello\nHi\nSo\nYes\n"
    assert bundle.tokenizer.decode(prompt("Who?")[0]) == "\nWho?\n"
    assert bundle.tokenizer.decode(prompt.alone("Who?")[0]) == "Who?\n"


def test_a_text_that_is_not_there(bundle: Bundle) -> None:
    """A template that changes what is said is named as the reason."""
    with pytest.raises(ConfigError, match="chat template changes"):
        span_of(bundle.tokenizer.encode("something else"), "this", bundle.tokenizer)


def test_passages_are_whole_sentences(bundle: Bundle) -> None:
    """What is pasted begins and ends with a sentence, and is no longer than was asked for."""
    text = "".join(f"The ship number {i} sailed. It came home late! " for i in range(200))
    filler = Filler([bundle.tokenizer.encode(text)], bundle.tokenizer)
    for seed in range(20):
        ids = filler.passage(np.random.default_rng(seed), 150)
        passage = bundle.tokenizer.decode(ids).strip()
        assert len(ids) <= 150
        assert passage.startswith(("The ship", "It came"))
        assert passage[-1] in ".!"

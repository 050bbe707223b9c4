"""What a turn asks: the lines of its question, wherever they stand in a long message."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bench.text import prose
from mc_core.bundle.bundle import load_bundle
from mc_core.context.message_index import asking
from mc_core.context.reading_format import MessageKind, ReadingFormat
from mc_core.focus.focus_config import FocusConfig
from mc_core.focus.question import MESSAGE_TOKENS, QUESTION_TOKENS, Question, TurnQuestion, last_message
from mc_core.lab.controller import MCController
from mc_core.models.tokenizer import Tokenizer
from mc_core.models.words import Words
from mc_core.session.session import Session
from server.settings import BUNDLED_MODEL
from tests.support import VOCABULARY, write_tokenizer

ASKED = "What opens the vault of the lighthouse keeper, and who told him?"
FACT = "The vault of the lighthouse keeper opens with the word marigold, as Zebedee told him."
Ids = NDArray[np.int32]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Tokenizer.load(folder)


@pytest.fixture(scope="module")
def words(tokenizer: Tokenizer) -> Words:
    return tokenizer.words(VOCABULARY)


def chat(tokenizer: Tokenizer, *messages: str) -> Ids:
    """Messages of a user, and what opens the reply."""
    told = "".join(f"<|im_start|>user\n{text}<|im_end|>\n" for text in messages)
    return tokenizer.encode_control(f"{told}<|im_start|>assistant\n")


def shown(session: Session, tokenizer: Tokenizer) -> str:
    """The text that stands raw."""
    wc, ids = session.wc, session.tree.ids(0, session.tokens)
    raw = wc.levels == 0
    parts = [ids[a:b] for a, b in zip(wc.starts()[raw], wc.ends()[raw], strict=True)]
    return tokenizer.decode(np.concatenate(parts))


def asked(tokenizer: Tokenizer, words: Words, prompt: Ids, reply: int = 0, at: int = 0, whole: int = 0) -> Question:
    turn = TurnQuestion.begin(at, prompt, tokenizer, words, whole)
    for token in np.resize(tokenizer.encode(" and so on"), reply).tolist():
        turn.read(token)
    return turn.now()


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 600), min_size=1, max_size=4),
    reply=st.integers(0, 400),
    at=st.integers(0, 1_000),
    whole=st.sampled_from([0, 300, 10_000]),
    seed=st.integers(0, 1_000),
)
def test_a_question_is_a_part_of_its_turn(
    tokenizer: Tokenizer, words: Words, sizes: list[int], reply: int, at: int, whole: int, seed: int
) -> None:
    """Law: a short turn is its own question; of a longer one the ids are those of its lines and the newest of the
    reply, at most so many, and all that is the turn's own lies within it."""
    rng = np.random.default_rng(seed)
    plain = np.setdiff1d(np.arange(VOCABULARY), sorted(tokenizer.control_ids)).astype(np.int32)
    parts = [np.append(rng.choice(plain, size), min(tokenizer.control_ids)) for size in sizes]
    prompt = np.concatenate(parts).astype(np.int32)
    question = asked(tokenizer, words, prompt, reply, at, whole)
    turn = np.concatenate([prompt, np.resize(tokenizer.encode(" and so on"), reply)]).astype(np.int32)
    assert len(question.ids) <= QUESTION_TOKENS
    if len(turn) <= QUESTION_TOKENS:
        assert (question.start, question.lines) == (at, ())
        np.testing.assert_array_equal(question.ids, turn)
        return
    assert question.start is not None
    assert at <= question.start <= at + len(turn)
    bounds = [edge - at for line in question.lines for edge in line]
    assert bounds == sorted(bounds)
    assert all(0 <= a < b <= len(prompt) for a, b in zip(bounds[::2], bounds[1::2], strict=True))
    lines = [turn[a - at : b - at] for a, b in question.lines if a < question.start]
    assert sum(map(len, lines)) <= MESSAGE_TOKENS
    held = np.concatenate([*lines, turn[:0]])
    if at + len(turn) - question.start > whole:
        np.testing.assert_array_equal(question.ids[: len(held)], held)
    assert question.ids[len(held) :].tolist() == [] or question.ids[-1] == turn[-1] or reply == 0


@pytest.mark.parametrize("place", ["in front", "behind", "both"])
@pytest.mark.parametrize("sentences", [12, 3_000])
def test_the_lines_that_ask_are_found(tokenizer: Tokenizer, words: Words, place: str, sentences: int) -> None:
    """Of a pasted text with its question in front, behind, or both, that line alone is asked."""
    text = prose(sentences)
    parts = {"in front": [ASKED, text], "behind": [text, ASKED], "both": [ASKED, text, ASKED]}[place]
    prompt = chat(tokenizer, "\n\n".join(parts))
    question = asked(tokenizer, words, prompt, at=77)
    told = tokenizer.decode(question.ids)
    assert ASKED in told
    assert "captain" not in told.replace(ASKED, "")
    for start, end in question.lines:
        assert tokenizer.decode(prompt[start - 77 : end - 77]).strip() in f"user\n{ASKED}"


def test_a_message_without_a_question_is_asked_by_its_ends(tokenizer: Tokenizer, words: Words) -> None:
    """Where nothing asks, the first and the last sentence are what a message is about."""
    prompt = chat(tokenizer, f"Tell me of the vault of the keeper.\n{prose(60)}\nDo it in one sentence, please.")
    told = tokenizer.decode(asked(tokenizer, words, prompt).ids)
    assert "Tell me of the vault of the keeper." in told
    assert "in one sentence, please." in told
    assert len(told) < 400


def test_a_short_question_takes_what_stands_before_it(tokenizer: Tokenizer, words: Words) -> None:
    """ "Where?" alone says nothing: what it follows is asked with it."""
    prompt = chat(tokenizer, f"{prose(60)}\nThe keeper hid the marigold. Where?")
    assert "hid the marigold. Where?" in tokenizer.decode(asked(tokenizer, words, prompt).ids)


def test_a_reply_does_not_outgrow_the_question(tokenizer: Tokenizer, words: Words) -> None:
    """However long a reply has become, it goes on with what was asked, and with its own newest words."""
    prompt = chat(tokenizer, ASKED)
    question = asked(tokenizer, words, prompt, reply=900)
    assert len(question.ids) == QUESTION_TOKENS
    told = tokenizer.decode(question.ids)
    assert ASKED in told
    assert told.endswith(" and so on"[: len(told)]) or " and so on" in told


def test_the_last_message_is_the_one_that_asks(tokenizer: Tokenizer, words: Words) -> None:
    """Of many messages that come at once, the last one is the question."""
    prompt = chat(tokenizer, prose(50), prose(40, seed=1), ASKED)
    start, end = last_message(prompt, tokenizer.control_ids)
    assert tokenizer.decode(prompt[start:end]) == f"user\n{ASKED}"
    assert "captain" not in tokenizer.decode(asked(tokenizer, words, prompt).ids)


@pytest.mark.parametrize("place", ["in front", "behind"])
def test_what_a_pasted_text_is_asked_for_is_opened(place: str) -> None:
    """A message of twenty budgets: the lines that ask stand raw, and so does the place that they ask for."""
    controller = MCController(load_bundle(BUNDLED_MODEL), FocusConfig(budget=1_024, lens="lexical", narrow=0.5))
    tokenizer = controller.core.bundle.tokenizer
    text = f"{prose(900)} {FACT} {prose(900, seed=1)}"
    parts = [ASKED, text] if place == "in front" else [text, ASKED]
    prompt = chat(tokenizer, "\n\n".join(parts))
    assert len(prompt) > 20_000
    controller.begin_inference_session(prompt)
    session = controller.session
    assert session is not None
    told = shown(session, tokenizer)
    assert "opens with the word marigold" in told
    assert ASKED in told


def test_a_message_that_fits_is_read_whole() -> None:
    """A message that takes no more than half of the budget stands raw from its first word on, whatever is asked."""
    controller = MCController(load_bundle(BUNDLED_MODEL), FocusConfig(budget=1_024, lens="lexical", narrow=0.5))
    tokenizer = controller.core.bundle.tokenizer
    controller.begin_inference_session(chat(tokenizer, f"{prose(300)} {FACT} {prose(300, seed=1)}"))
    session = controller.session
    assert session is not None
    before = session.tokens
    message = f"{ASKED}\n{prose(24, seed=2)}"
    prompt = chat(tokenizer, message)
    assert QUESTION_TOKENS < len(prompt) < 512
    controller.inference_step(prompt)
    assert (session.wc.levels[session.wc.starts() >= before] == 0).all()
    assert "opens with the word marigold" in shown(session, tokenizer)


def test_names_of_roles_ask_for_nothing(tokenizer: Tokenizer) -> None:
    """What the template writes around messages, and messages of others, are no part of what a turn asks: their words
    would find the questions before it, which hold the same."""
    user, assistant, system = (
        MessageKind(
            role, tokenizer.encode_control(f"<|im_start|>{role}\n"), tokenizer.encode_control("<|im_end|>\n"), 2
        )
        for role in ("user", "assistant", "system")
    )
    frames = ReadingFormat((user, assistant, system), lambda about: user, np.array([0], np.int32))
    before = "<|im_end|>\n<|im_start|>system\nBe brief.<|im_end|>\n"
    prompt = np.concatenate([tokenizer.encode_control(before), chat(tokenizer, ASKED)])
    turn = TurnQuestion.begin(64, prompt, tokenizer, tokenizer.words(VOCABULARY), 0, asking(frames, prompt))
    for token in tokenizer.encode(" It is").tolist():
        turn.read(token)
    assert tokenizer.decode(turn.now().ids) == f"{ASKED} It is"
    assert turn.now().start == 64
    bare = tokenizer.encode(ASKED)
    assert asking(frames, bare).all()
    empty = tokenizer.encode_control("<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n")
    assert asking(frames, empty).any()

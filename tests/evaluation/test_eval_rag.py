"""The peer: what its prompt holds, in which order, and that the model is shown all of it and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval_lab import FOCUS, Asking
from mc_core.bundle.bundle import Bundle
from mc_core.lab.evaluation import engine_driver, rag
from mc_core.lab.evaluation.engine_driver import EngineDriver
from mc_core.lab.evaluation.rag import CHUNK, Retrieved, Retriever
from mc_core.lab.tasks.plant import PlantPlan, plant
from server.commands.lab.eval_prompt import prompt_of

WORDS = ["sea", "ship", "captain", "sailed", "home", "storm", "night", "the"]


@pytest.fixture(scope="module")
def retriever(bundle: Bundle) -> Retriever:
    """Before a text of random words, with a telling word in two places."""
    draw = np.random.default_rng(3)
    text = " ".join(draw.choice(WORDS, 2000))
    ids = bundle.tokenizer.encode(f"{text} xylophone {text} xylophone zither {text}")
    return Retriever(ids, bundle.tokenizer, prompt_of(bundle))


@settings(max_examples=40, deadline=None)
@given(
    question=st.lists(st.sampled_from([*WORDS, "xylophone", "zither"]), min_size=1).map(" ".join),
    room=st.integers(300, 3000),
)
def test_a_prompt_is_chunks_in_order_and_fits(retriever: Retriever, bundle: Bundle, question: str, room: int) -> None:
    """Never longer than its room; the text of each run of chunks stands in it, in order, and the question behind."""
    found = retriever.ask(question, room)
    text = bundle.tokenizer.decode(found.ids)
    assert len(found.ids) <= room
    at = text.index("Use the following text to answer the question.\n\n")
    for (start, end), after in zip(found.shown, [*found.shown, (len(retriever._ids) + 1, 0)][1:], strict=True):
        assert start % CHUNK == 0
        assert end < after[0]
        at = text.index(bundle.tokenizer.decode(retriever._ids[start:end]).strip(), at)
    assert f"Question: {question}" in text[at:]
    tokens = sum(end - start for start, end in found.shown)
    assert tokens <= room


def test_the_best_chunks_are_those_that_say_it(retriever: Retriever, bundle: Bundle) -> None:
    """A rare word's chunks are found, the chunk with two of the question's rare words first; small words find none."""
    ids, tokenizer = retriever._ids, bundle.tokenizer
    texts = [tokenizer.decode(ids[at : at + CHUNK]) for at in range(0, len(ids), CHUNK)]
    both = [i for i, text in enumerate(texts) if "zither" in text]
    ranked = retriever._rank("Who has the zither and the xylophone?")
    assert ranked[0] in both
    assert set(ranked.tolist()) == {i for i, text in enumerate(texts) if "xylophone" in text or "zither" in text}
    assert len(retriever._rank("What is it?")) == len(retriever.ask("What is it?", 900).shown) == 0


@given(
    chunks=st.sets(st.integers(0, 9)),
    span=st.tuples(st.integers(0, 1200), st.integers(1, 200)).map(lambda pair: (pair[0], pair[0] + pair[1])),
)
def test_whole_statements_count(chunks: set[int], span: tuple[int, int]) -> None:
    """A statement is held if and only if each of its tokens is in a chosen chunk."""
    runs: list[tuple[int, int]] = []
    for chunk in sorted(chunks):
        if runs and runs[-1][1] == chunk * CHUNK:
            runs[-1] = (runs[-1][0], (chunk + 1) * CHUNK)
        else:
            runs.append((chunk * CHUNK, (chunk + 1) * CHUNK))
    nothing = np.empty(0, np.int32)
    shown = {token for start, end in runs for token in range(start, end)}
    assert Retrieved(nothing, nothing, tuple(runs)).holds([span]) == ({*range(*span)} <= shown)


def test_the_model_is_shown_the_prompt_alone(asking: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of the prompt stands raw when the first token comes, whatever the focus's budget, and nothing before it."""
    driver = asking.driver
    question = asking.history.questions[0]
    seen = []
    ask = engine_driver.Seat.ask

    def watched(seat, prompt, suffix, gold, max_tokens):  # type: ignore[no-untyped-def]
        # As gold: the prompt itself.
        answer = ask(seat, prompt, suffix, [(0, len(prompt))], max_tokens)
        seen.append((len(prompt), answer.gold_open, seat.session.tokens))
        return answer

    monkeypatch.setattr(engine_driver.Seat, "ask", watched)
    for limit in (1, 40):
        driver.ask("rag", question, limit)
    assert [(whole, left) for _, whole, left in seen] == [(True, 0)] * 2
    assert all(FOCUS.budget - 2 * CHUNK < length <= FOCUS.budget for length, _, _ in seen)


def test_gold_is_what_the_chunks_hold(asking: Asking, bundle: Bundle) -> None:
    """A needle's key finds its chunk, so its gold is there unless its statement lies across an edge of that."""
    for question in asking.history.questions:
        answer = asking.driver.ask("rag", question, 1)
        found = Retriever(asking.history.ids, bundle.tokenizer, asking.driver.prompt).ask(
            question.asked.question, FOCUS.budget
        )
        spans = [asking.history.spans[i] for i in question.gold]
        assert answer.gold_open == (found.holds(spans) if spans else None)


def test_without_the_package_it_is_left_out(
    asking: Asking,
    bundle: Bundle,
    filler,
    tmp_path,
    monkeypatch: pytest.MonkeyPatch,  # type: ignore[no-untyped-def]
) -> None:
    """The reason says what to install; the other methods are asked all the same."""
    from server.stores.sqlite import SqliteStore

    monkeypatch.setattr(rag, "find_spec", lambda name: None)
    store = SqliteStore(tmp_path / "eval.sqlite")
    history = plant(np.random.default_rng(0), bundle.tokenizer, filler, PlantPlan(1000, ("needle",), trials=1))[0]
    with EngineDriver(bundle, FOCUS, store, prompt_of(bundle), (), ("recency", "rag")) as driver:
        assert "pip install megacontext[eval]" in driver.read(history)["rag"]
    store.close()

"""The engine's driver: what it calls open is what the model was shown, and each method does as its name says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from eval_lab import FOCUS, LENSES, Asking
from mc_core.bundle.bundle import Bundle
from mc_core.errors import ConfigError
from mc_core.lab.evaluation.answers import ask_all, cells_of
from mc_core.lab.evaluation.engine_driver import EngineDriver
from mc_core.lab.evaluation.methods import BASELINES
from mc_core.lab.tasks.filler import Filler
from mc_core.lab.tasks.history import blocks_of
from mc_core.lab.tasks.plant import PlantPlan, plant
from server.commands.lab.eval_prompt import prompt_of
from server.stores.sqlite import SqliteStore


@pytest.mark.parametrize("method", [*LENSES, "recency", "sinks", "oracle"])
def test_open_is_what_the_model_was_shown(asking: Asking, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """gold_open holds if and only if the slab was filled with the ids of every token of the gold statements."""
    driver, history = asking.driver, asking.history
    for question in history.questions[:6]:
        shown: list[str] = []
        engine = driver._seats[method].engine
        kv_run = engine.core.bundle.decoder.forward
        session = driver._seats[method].session

        def watched(embeddings, attention, session=session, shown=shown, kv_run=kv_run):  # type: ignore[no-untyped-def]
            if not shown:
                layout = engine.core.layout(session)  # noqa: B023
                ids = session.tree.ids(0, session.tokens)
                shown.append(bundle_text(driver, ids[layout.starts[layout.is_raw]]))
            return kv_run(embeddings, attention)

        with monkeypatch.context() as patch:
            patch.setattr(engine.core.bundle.decoder, "forward", watched)
            answer = driver.ask(method, question, 2)
        if not question.gold:
            assert answer.gold_open is None
            continue
        stated = [bundle_text(driver, history.ids[slice(*history.spans[i])]) for i in question.gold]
        assert answer.gold_open == all(text in shown[0] for text in stated)


def bundle_text(driver: EngineDriver, ids: np.ndarray) -> str:
    return driver.bundle.tokenizer.decode(ids)


def test_the_oracle_always_opens_gold(asking: Asking) -> None:
    """Told the blocks, the focus opens all of them in one refocus, as long as they fit the budget at all."""
    spans = asking.history.spans
    asked = [q for q in asking.history.questions if q.gold and len(blocks_of([spans[i] for i in q.gold], 32)) <= 5]
    assert {question.suite for question in asked} == {"needle", "paraphrase", "absent"}
    assert all(asking.driver.ask("oracle", question, 1).gold_open for question in asked)


@pytest.mark.parametrize("method", ["recency", "sinks"])
def test_truncation_never_opens_what_is_old(asking: Asking, method: str) -> None:
    """Gold older than the budget is not open; the newest gold is, and so is the first block's with sinks."""
    for question in asking.history.questions:
        if not question.gold:
            continue
        answer = asking.driver.ask(method, question, 1)
        oldest = min(asking.history.spans[i][0] for i in question.gold)
        if 32 <= oldest < len(asking.history) - FOCUS.budget:
            assert answer.gold_open is False
    seat = asking.driver._seats[method]
    first = 0 if method == "recency" else 32
    assert FOCUS.budget - 200 < seat.session.tokens < FOCUS.budget
    newest = len(asking.history) - (seat.session.tokens - first)
    assert seat.shift((len(asking.history) - 9, len(asking.history))) == (seat.session.tokens - 9, seat.session.tokens)
    assert seat.shift((newest - 1, newest + 5)) is None
    assert (seat.shift((3, 20)) is None) == (method == "recency")
    kept = seat.session.tree.ids(first, seat.session.tokens)
    assert np.array_equal(kept, asking.history.ids[newest:])


def test_questions_do_not_touch_each_other(asking: Asking) -> None:
    """The same question by the same method gives the same reply, whatever was asked before by others."""
    driver, (first, second, *_) = asking.driver, asking.history.questions
    before = driver.ask("hybrid", first, 6)
    for method in driver.methods:
        if method != "full":
            driver.ask(method, second, 3)
    after = driver.ask("hybrid", first, 6)
    assert (before.text, before.gold_open) == (after.text, after.gold_open)
    assert {seat.session.tokens for seat in driver._seats.values()} == {
        len(asking.history),
        0,  # of rag, which keeps no conversation
        *(driver._seats[name].session.tree.num_tokens for name in ("recency", "sinks")),
    }


def test_one_chat_keeps_every_question(bundle: Bundle, filler: Filler, tmp_path: Path) -> None:
    """Each question is the next turn of the chat that all before it are turns of; rag keeps none of it."""
    plan = PlantPlan(3000, ("needle",), trials=3)
    history = plant(np.random.default_rng(3), bundle.tokenizer, filler, plan)[0]
    store = SqliteStore(tmp_path / "eval.sqlite")
    prompt = prompt_of(bundle)
    with EngineDriver(bundle, FOCUS, store, prompt, ("hybrid",), ("rag",), one_chat=True) as driver:
        driver.read(history)
        session, tokens = driver._seats["hybrid"].session, len(history)
        for question in history.questions:
            ids, suffix = prompt(question.asked.question)
            driver.ask("rag", question, 3)
            driver.ask("hybrid", question, 3)
            assert np.array_equal(session.tree.ids(tokens, tokens + len(ids)), ids)
            assert session.tokens - tokens - len(ids) - len(suffix) in range(4)
            tokens = session.tokens
        assert session.counters.turns == len(history.questions)
    store.close()


@pytest.fixture
def short(bundle: Bundle, filler: Filler, tmp_path: Path) -> Iterator[tuple[EngineDriver, list]]:  # type: ignore[type-arg]
    """A history that the base's window holds whole."""
    plan = PlantPlan(640, ("needle",), trials=2)
    histories = plant(np.random.default_rng(2), bundle.tokenizer, filler, plan)
    store = SqliteStore(tmp_path / "eval.sqlite")
    with EngineDriver(bundle, FOCUS, store, prompt_of(bundle), ("lexical",), BASELINES) as driver:
        yield driver, histories
    store.close()


def test_full_shows_all_where_it_fits(short, asking: Asking) -> None:  # type: ignore[no-untyped-def]
    """Within the window everything is open; a longer history is left out, with the reason."""
    driver, histories = short
    rows, skipped = ask_all(driver, histories, driver.methods, {"recency": 1}, 3, lambda *told: None)
    assert skipped == {}
    assert all(row.gold_open for row in rows if row.method in ("full", "oracle"))
    by_method = {cell.method: cell.answers.n for cell in cells_of(rows)}
    assert by_method == {"lexical": 2, "recency": 1, "sinks": 2, "oracle": 2, "full": 2, "rag": 2}
    assert "full" not in asking.driver._seats
    assert "window of 1024" in asking.driver.read(asking.history)["full"]


@pytest.mark.parametrize(
    ("lenses", "baselines", "field"),
    [(("psychic",), (), "lenses"), ((), ("psychic",), "baselines"), ((), (), "lenses"), (("transformer",), (), "kind")],
)
def test_methods_that_there_are_not(
    bundle: Bundle, tmp_path: Path, filler: Filler, lenses: tuple[str, ...], baselines: tuple[str, ...], field: str
) -> None:
    """Unknown names, nothing at all, and a lens of another kind than the network are refused by name."""
    store = SqliteStore(tmp_path / "eval.sqlite")
    plan = PlantPlan(1000, ("needle",), trials=1)
    with (
        pytest.raises(ConfigError, match=field),
        EngineDriver(bundle, FOCUS, store, prompt_of(bundle), lenses, baselines) as driver,
    ):
        driver.read(plant(np.random.default_rng(0), bundle.tokenizer, filler, plan)[0])
    store.close()

"""Suite ``real``: questions kept without their texts, histories around the evidence, and what the focus opens of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from eval_lab import FOCUS, LENSES, Asking
from mc_core.bundle.bundle import Bundle
from mc_core.errors import ConfigError
from mc_core.lab.data.corpus import Document
from mc_core.lab.evaluation.real_report import differences_of, mcnemar, shares_of, to_json
from mc_core.lab.evaluation.real_text import RECENCY, Found, ask_real
from mc_core.lab.tasks.real_text import histories as histories_module
from mc_core.lab.tasks.real_text.documents import digest_of, read_texts, text_of
from mc_core.lab.tasks.real_text.histories import RealHistory, encode_places, real_histories, window_borders
from mc_core.lab.tasks.real_text.questions import OVERLAPS, SPLITS, RealQuestion, load_questions
from server.cli import app
from server.commands.lab import eval_real
from server.commands.lab.eval_run import prompt_of

FILE = "talk/sea"


@pytest.mark.parametrize(("split", "least"), [("held_out", 200), ("tuning", 60)])
def test_every_question_can_be_asked(split: str, least: int) -> None:
    """No question is asked twice, all have an answer and evidence in order, and each kind of overlap has a fifth."""
    questions = load_questions(split)
    assert len({question.question for question in questions}) == len(questions) >= least
    assert all(question.question.endswith("?") and question.answer for question in questions)
    for question in questions:
        flat = [place for span in question.evidence for place in span]
        assert flat
        assert flat == sorted(set(flat))
    if split == "held_out":
        kinds = [question.overlap for question in questions]
        assert all(kinds.count(overlap) >= len(kinds) / 5 for overlap in OVERLAPS)


def test_nothing_is_tuned_on_what_is_held_out() -> None:
    """No document is in both splits."""
    held_out, tuning = ({question.sha256 for question in load_questions(split)} for split in SPLITS)
    assert not held_out & tuning


def test_a_split_that_there_is_not() -> None:
    """The error names those that there are."""
    with pytest.raises(ConfigError, match=r"held_out, tuning, got 'other'"):
        load_questions("other")


texts = st.text(st.sampled_from("ab é.\n\"'1，"), min_size=1, max_size=60)


@given(text=texts, draw=st.data())
def test_places_keep_their_text(bundle: Bundle, text: str, draw: st.DataObject) -> None:
    """All ids spell the text, and those of a place spell the place, but for one blank before it."""
    places: list[tuple[int, int]] = []
    for _ in range(draw.draw(st.integers(0, 4))):
        start = draw.draw(st.integers(0, len(text) - 1))
        places.append((start, draw.draw(st.integers(start + 1, len(text)))))
    ids, spans = encode_places(text, places, bundle.tokenizer)
    assert bundle.tokenizer.decode(ids) == text
    for (start, end), (first, last) in zip(places, spans, strict=True):
        spelled = bundle.tokenizer.decode(ids[first:last])
        assert spelled.removeprefix(" ") == text[start:end].removeprefix(" ")


@given(st.lists(st.integers(1, 60), min_size=1, max_size=30), st.integers(20, 90))
def test_windows_are_whole_paragraphs(lengths: list[int], window: int) -> None:
    """Windows follow each other from the start to the end, and begin where a paragraph does."""
    text = "\n\n".join("a" * length for length in lengths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(histories_module, "WINDOW", window)
        borders = window_borders(text)
    assert [start for start, _ in borders] == [0, *(end for _, end in borders[:-1])]
    assert borders[-1][1] == len(text)
    assert all(start == 0 or text[start - 2 : start] == "\n\n" for start, _ in borders)
    assert len(borders) <= -(-len(text) // window)


def _documents(count: int, held_out: bool) -> list[Document]:
    """Dialogues of one side of the split; each names a number that no other one does."""
    found, number = [], 0
    while len(found) < count:
        parts = (f"What is ship {number} laden with?", f"Crate {number} holds tea, and she sails at night.", "Aye.")
        document = Document(parts, ("user", "assistant", "user"))
        number += 1
        if document.held_out == held_out:
            found.append(document)
    return found


def _question(document: Document, group: str = "sea") -> RealQuestion:
    text = text_of(document)
    start = text.index("Crate")
    place = (start, text.index(" holds tea"))
    return RealQuestion(group, FILE, 0, "", digest_of(text), (place,), "What is in it?", "tea", "none")


def _write(folder: Path, documents: Sequence[Document]) -> Path:
    path = folder / f"{FILE}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {"messages": [{"role": role, "content": part} for role, part in zip(one.roles, one.parts, strict=True)]}
        if one.roles
        else {"text": one.parts[0]}
        for one in documents
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def test_a_history_holds_each_document_once(bundle: Bundle, tmp_path: Path) -> None:
    """Documents asked about and others of their side stand whole in it, evidence where the spans say, in the same
    order whatever the order of the rows."""
    here, there = _documents(9, True), _documents(5, False)
    questions = [_question(document) for document in here[:4]]
    found: list[RealHistory] = []
    for number, rows in enumerate(([*here, *there], [*there, *here[::-1]])):
        data = _write(tmp_path / str(number), rows)
        found += real_histories(questions, read_texts(data, questions, True), bundle.tokenizer)
    one, other = found
    assert np.array_equal(one.ids, other.ids)
    whole = bundle.tokenizer.decode(one.ids)
    assert sorted(whole.split("\n\n")) == sorted(text_of(document) for document in here)
    for question, spans in zip(one.questions, one.spans, strict=True):
        (start, end), ((first, last),) = question.evidence[0], spans
        text = next(text_of(document) for document in here if digest_of(text_of(document)) == question.sha256)
        assert bundle.tokenizer.decode(one.ids[first:last]).strip() == text[start:end]


def test_a_long_document_is_asked_about_window_by_window(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each window with evidence is a history of its own; evidence across two of them is an error that names it."""
    pages = [f"Page {number} is grey." for number in range(40)]
    while not (document := Document(("\n\n".join(pages),))).held_out:
        pages.append("More.")
    text, data = text_of(document), _write(tmp_path, [document])
    monkeypatch.setattr(histories_module, "WINDOW", len(text) // 3)
    asked = [
        replace(_question(_documents(1, True)[0]), sha256=digest_of(text), evidence=((at, at + 6),))
        for at in (text.index("Page 2 "), text.index("Page 39 "))
    ]
    first, last = real_histories(asked, read_texts(data, asked, True), bundle.tokenizer)
    assert (first.name, len(first.questions), len(last.questions)) == ("sea 1", 1, 1)
    assert bundle.tokenizer.decode(last.ids[slice(*last.spans[0][0])]) == "Page 3"
    across = [replace(asked[0], evidence=((0, len(text)),))]
    with pytest.raises(ConfigError, match=r"one window of talk/sea, row 0"):
        real_histories(across, read_texts(data, across, True), bundle.tokenizer)


@pytest.mark.parametrize("change", ["text", "side", "place"])
def test_another_corpus_is_not_asked(tmp_path: Path, change: str) -> None:
    """Text that changed, a document on the other side of the split, or evidence outside of it: an error names it."""
    documents = _documents(3, change != "side")
    question = _question(documents[0])
    if change == "text":
        documents = documents[1:]
    if change == "place":
        question = replace(question, evidence=((0, 10_000),))
    with pytest.raises(ConfigError, match=r"talk/sea, row 0"):
        read_texts(_write(tmp_path, documents), [question], True)


def test_open_as_the_engine_opens(bundle: Bundle, asking: Asking) -> None:
    """Without the decoder, every question finds the same raw as in a turn of the engine, by every lens."""
    history = asking.history
    told = [question for question in history.questions if question.gold]
    dummy = _question(_documents(1, True)[0])
    asked = [replace(dummy, question=question.asked.question) for question in told]
    spans = [tuple(history.spans[i] for i in question.gold) for question in told]
    real = RealHistory("sea", history.ids, tuple(asked), tuple(spans))
    rows = ask_real(bundle, FOCUS, [real], LENSES, prompt_of(bundle), lambda *told: None)
    found = {(row.question, row.method): row.raw for row in rows}
    for question, method in product(told, (*LENSES, RECENCY)):
        answer = asking.driver.ask(method, question, 1)
        assert found[question.asked.question, method] == answer.gold_open
    assert any(row.opened for row in rows if row.method == "lexical")
    with pytest.raises(ConfigError, match="lenses"):
        ask_real(replace(bundle, lensnet=None), FOCUS, [real], ("hybrid",), prompt_of(bundle), lambda *told: None)


@given(st.integers(0, 7), st.integers(0, 7))
def test_mcnemar_counts_every_split(gained: int, lost: int) -> None:
    """p is the share of all ways in which a coin could have decided each question that are as uneven or more so."""
    n = gained + lost
    ways = [sum(way) for way in product((0, 1), repeat=n)]
    uneven = [wins for wins in ways if abs(2 * wins - n) >= abs(gained - lost)]
    assert mcnemar(gained, lost) == pytest.approx(len(uneven) / len(ways))


def _row(number: int, method: str, raw: bool) -> Found:
    overlap = OVERLAPS[number % 3]
    return Found("sea", 100, "talk/sea, row 0", number % 2 == 0, f"{number}?", overlap, method, raw, number)


def test_figures_add_up() -> None:
    """Parts split the questions; a difference is that of the shares, gained less lost of n."""
    raw = {"hybrid": [1, 1, 1, 0, 1, 0], "lexical": [1, 0, 0, 1, 1, 0]}
    rows = [_row(i, method, bool(one)) for method, ones in raw.items() for i, one in enumerate(ones)]
    shares = {(share.method, share.part): share.raw for share in shares_of(rows)}
    assert shares["hybrid", "all"].value == pytest.approx(4 / 6)
    assert sum(shares["hybrid", overlap].n for overlap in OVERLAPS) == 6
    assert shares["hybrid", "dialogues"].n + shares["hybrid", "texts"].n == 6
    every = {(one.method, one.part): one for one in differences_of(rows)}
    assert {method for method, _ in every} == {"hybrid"}
    one = every["hybrid", "all"]
    assert (one.gained, one.lost) == (2, 1)
    assert one.less.value == pytest.approx(1 / 6)
    assert json.loads(json.dumps(to_json(rows, {"bundle": "tiny"})))["rows"][0]["method"] == "hybrid"


def test_one_run(bundle_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the command line: tables on stdout, and a file with every row and no folder of this machine."""
    documents = _documents(40, True)
    questions = [replace(_question(document), question=f"{number}?") for number, document in enumerate(documents[:5])]
    monkeypatch.setattr(eval_real, "load_questions", lambda split: questions)
    data, out = _write(tmp_path / "data", documents), tmp_path / "out"
    arguments = ["eval", "real", "--bundle", str(bundle_dir), "--data", str(data), "--budget", "448", "--out", str(out)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "evidence raw" in result.stdout
    found = json.loads((out / "real.json").read_text())
    assert len(found["rows"]) == 5 * 4
    assert found["focus"]["budget"] == 448
    assert str(tmp_path) not in json.dumps(found)

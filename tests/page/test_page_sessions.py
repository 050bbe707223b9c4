"""Sessions on the page, in a real browser: rename, fork, rewind, delete, export."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from visit import Visit, ask, replied, turns, until, visit

pytestmark = pytest.mark.page


@pytest.fixture
def visitor(browser: Any, server: str) -> Iterator[Visit]:
    """On a session of two turns."""
    with visit(browser, server) as visitor:
        for question in ("The first question", "The second question"):
            ask(visitor.page, question)
            replied(visitor.page)
            until(visitor.page, "document.querySelector('#question').value === ''")
        yield visitor


def session_of(visitor: Visit) -> dict[str, Any]:
    """The session that is shown, as the server has it."""
    answer = httpx.get(f"{visitor.address}/v1/sessions/{visitor.page.evaluate('location.hash.slice(1)')}")
    told: dict[str, Any] = answer.json()
    return told


def test_a_new_name_is_the_servers_too(visitor: Visit) -> None:
    """Law: a session is called by its first question, or as one likes; the server keeps the name."""
    page = visitor.page
    assert page.inner_text("#title") == "The first question"
    page.click("[aria-label=Rename]")
    page.fill("#ask-input", "Notes on ferries")
    page.press("#ask-input", "Enter")
    until(page, "document.querySelector('#title').textContent === 'Notes on ferries'")
    assert session_of(visitor)["metadata"]["title"] == "Notes on ferries"
    page.wait_for_selector("#sessions [aria-current] .name >> text=Notes on ferries")


def test_a_rewind_cuts_what_stands_behind_a_turn(visitor: Visit) -> None:
    """Law: a rewind asks first, keeps up to and with its turn, and nothing behind it."""
    page = visitor.page
    before = turns(page)
    reply = page.locator(".turn.assistant").first
    reply.hover()
    reply.get_by_label("Rewind to here").click()
    assert "2 messages" in page.inner_text("#ask-words")
    page.click("#ask-no")
    assert turns(page) == before
    reply.get_by_label("Rewind to here").click()
    page.click("#ask-answers button")
    until(page, "document.querySelectorAll('.turn[data-id]').length === 2")
    assert turns(page) == before[:2]
    page.reload()
    page.wait_for_selector(".turn.assistant[data-id]")
    assert turns(page) == before[:2]


def test_a_fork_leaves_its_origin_alone(visitor: Visit) -> None:
    """Law: a fork begins with the turns up to its place, and what is said in it stays in it."""
    page = visitor.page
    origin, before = session_of(visitor), turns(page)
    question = page.locator(".turn.assistant").first
    question.hover()
    question.get_by_label("Fork from here").click()
    until(page, "id => location.hash.length > 1 && location.hash !== '#' + id", origin["id"])
    until(page, "document.querySelectorAll('.turn[data-id]').length === 2")
    assert turns(page) == before[:2]
    ask(page, "Another second question")
    replied(page)
    assert len(turns(page)) == 4
    page.go_back()
    until(page, "id => location.hash === '#' + id", origin["id"])
    page.wait_for_selector("text=The second question")
    assert turns(page) == before


def test_a_deletion_asks_first(visitor: Visit) -> None:
    """Law: a session goes only after a yes, and then for good."""
    page = visitor.page
    session = session_of(visitor)
    page.click("[aria-label=Delete]")
    page.keyboard.press("Escape")
    assert session_of(visitor)["id"] == session["id"]
    page.click("[aria-label=Delete]")
    page.click("#ask-answers button")
    page.wait_for_selector("#welcome")
    assert httpx.get(f"{visitor.address}/v1/sessions/{session['id']}").status_code == 404


@pytest.mark.parametrize("format", ["json", "markdown"])
def test_an_export_holds_every_message(visitor: Visit, format: str) -> None:
    """Law: the file that is saved has all that was said, in order."""
    page = visitor.page
    page.click("[aria-label=Export]")
    with page.expect_download() as saved:
        page.click(f"#ask-dialog [value={format}]")
    text = saved.value.path().read_text("utf-8")
    if format == "json":
        messages = json.loads(text)["messages"]
        assert [one["role"] for one in messages] == ["user", "assistant"] * 2
        assert messages[0]["content"] == "The first question"
    else:
        assert text.index("The first question") < text.index("The second question")

"""Chats on the page, in a real browser: streaming, stop, texts, keys, two tabs, and the keyboard alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from support import running, settings_for
from visit import ask, replied, turns, until, visit

pytestmark = pytest.mark.page

LONG = 100_000
WRITING = ".turn.writing .body :not(.waiting)"
BOOK = Path(__file__).parents[2] / "docs" / "examples" / "the-ferry-at-averby.txt"


def test_a_first_visit_reads_a_book_and_answers_in_three_clicks(browser: Any, server: str) -> None:
    """Law: from opening the page, three clicks at most to a streamed answer about a book, with nothing explained."""
    with visit(browser, server) as visitor:
        page, clicks = visitor.page, 0
        with page.expect_file_chooser() as chooser:
            page.click("#choose-first")
            clicks += 1
        chooser.value.set_files(BOOK)
        page.wait_for_selector(".turn.document")
        page.keyboard.type("What is the name of Marta's dog?")
        page.click("#send")
        clicks += 1
        replied(page)
        assert [role for role, _ in turns(page)] == ["document", "user", "assistant"]
        assert clicks <= 3


def test_a_reply_comes_in_while_it_is_written_and_stays(browser: Any, patient_server: str) -> None:
    """Law: text of a reply stands on the page before its end; what stands after the end is what the server keeps."""
    with visit(browser, patient_server) as visitor:
        page = visitor.page
        ask(page, "What do you remember?")
        page.wait_for_selector(WRITING)
        replied(page)
        shown = turns(page)
        assert shown[0] == ("user", "What do you remember?")
        page.reload()
        page.wait_for_selector(".turn.assistant[data-id]")
        assert turns(page) == shown


@pytest.mark.parametrize("how", ["Escape", "button"])
def test_a_reply_can_be_stopped(browser: Any, patient_server: str, how: str) -> None:
    """Law: Esc and the button end a reply at once, the page says what is kept, and the next turn goes on."""
    with visit(browser, patient_server, length=LONG) as visitor:
        page = visitor.page
        ask(page, "Tell me all of it")
        page.wait_for_selector(WRITING)
        page.keyboard.press("Escape") if how == "Escape" else page.click("#stop")
        page.wait_for_selector("#stop", state="hidden")
        page.wait_for_selector(".turn .note")
        assert "topped" in page.inner_text(".turn .note")
        assert page.input_value("#question") == "Tell me all of it"


def test_a_reload_goes_on_with_the_reply(browser: Any, patient_server: str) -> None:
    """Law: a page that is loaded anew in the middle of a reply shows all of it, from its first word to its last."""
    with visit(browser, patient_server, length=500) as visitor:
        page = visitor.page
        ask(page, "Tell me all of it")
        page.wait_for_selector(WRITING)
        assert page.is_visible("#stop")
        page.reload()
        page.wait_for_selector(WRITING)
        assert page.inner_text(".turn.user .body") == "Tell me all of it"
        replied(page)
        session = page.evaluate("location.hash.slice(1)")
        kept = httpx.get(f"{patient_server}/v1/sessions/{session}/messages").json()["data"]
        assert [one["role"] for one in kept] == ["user", "assistant"]
        # Marks of Markdown are no text on the page.
        assert plain(turns(page)[1][1]) == plain(kept[1]["content"])


def test_a_reply_goes_on_while_another_session_is_looked_at(browser: Any, patient_server: str) -> None:
    """Law: to look at another session stops nothing; who comes back finds the reply, however far it is."""
    with visit(browser, patient_server, length=LONG) as visitor:
        page = visitor.page
        ask(page, "Tell me all of it")
        page.wait_for_selector(WRITING)
        session = page.evaluate("location.hash")
        page.click("#new-session")
        page.wait_for_selector("#welcome")
        assert page.is_hidden("#stop")
        page.go_back()
        page.wait_for_selector(WRITING)
        assert page.evaluate("location.hash") == session
        page.keyboard.press("Escape")
        page.wait_for_selector("#stop", state="hidden")
        page.wait_for_selector(".turn .note")


def test_a_file_of_a_megabyte_is_read_with_progress(browser: Any, server: str, tmp_path: Path) -> None:
    """Law: a dropped file is read in whole, under its name, and how far it is can be seen."""
    book = tmp_path / "a-long-book.txt"
    book.write_text((BOOK.read_text("utf-8") * 40)[:1_000_000], "utf-8")
    with visit(browser, server) as visitor:
        page = visitor.page
        drop(page, book)
        until(page, "document.querySelector('#work-progress').value > 0")
        page.wait_for_selector(".turn.document", timeout=120_000)
        assert turns(page) == [("document", book.name)]
        assert page.is_hidden("#work")
        assert page.is_visible("#strip")


def test_a_wrong_key_is_told_and_the_right_one_goes_on(browser: Any, model_dir: Path, tmp_path: Path) -> None:
    """Law: the page loads without a key, asks for it, says that one is wrong, and keeps it for this tab alone."""
    settings = settings_for(model_dir, tmp_path / "s.sqlite", api_key=["right"])
    with running(settings) as address, visit(browser, address) as visitor:
        page = visitor.page
        page.wait_for_selector("#key-dialog[open]")
        page.fill("#key", "wrong")
        page.press("#key", "Enter")
        page.wait_for_selector("#key-words.wrong")
        assert "unknown API key" in page.inner_text("#key-words")
        page.fill("#key", "right")
        page.press("#key", "Enter")
        page.wait_for_selector("#server strong")
        page.reload()
        page.wait_for_selector("#server strong")
        other = visitor.tab()
        other.wait_for_selector("#key-dialog[open]")
        # A browser reports each 401 by itself.
        visitor.wrong = [one for one in visitor.wrong if "401" not in one]


def test_two_tabs_on_one_session_show_the_same(browser: Any, server: str) -> None:
    """Law: what is said in one tab stands in the other one, too, and the other way round."""
    with visit(browser, server) as visitor:
        first = visitor.page
        ask(first, "The first tab asks")
        replied(first)
        second = visitor.tab(first.evaluate("location.hash"))
        second.wait_for_selector(".turn.assistant[data-id]")
        assert turns(second) == turns(first)
        ask(second, "The second tab asks")
        replied(second)
        first.bring_to_front()
        first.wait_for_selector(".turn[data-id] >> nth=3")
        assert turns(first) == turns(second)
        assert len(turns(first)) == 4


def test_the_keyboard_alone_is_enough(browser: Any, server: str) -> None:
    """Law: without a pointer one can ask, go back to a turn, look at a place of the history and pin it."""
    with visit(browser, server) as visitor:
        page = visitor.page
        page.wait_for_selector("#send:enabled")
        page.keyboard.type("Only keys, no pointer")
        page.keyboard.press("Enter")
        replied(page)
        until_focus_is_at(page, "#strip")
        page.keyboard.press("Home")
        page.keyboard.press("End")
        page.keyboard.press("ArrowLeft")
        page.wait_for_selector("#place blockquote:not(:empty)")
        until_focus_is_at(page, ".turn.user .row button")
        page.keyboard.press("Enter")
        page.wait_for_selector("#ask-dialog[open]")
        page.keyboard.press("Escape")
        page.wait_for_selector("#ask-dialog", state="hidden")
        until_focus_is_at(page, "#question")


def plain(text: str) -> str:
    """Letters and digits alone."""
    return "".join(one for one in text if one.isalnum())


def until_focus_is_at(page: Any, selector: str) -> None:
    """Press Tab until an element has the focus; everything that has it on the way can be seen."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("selector => document.activeElement?.matches(selector)", selector):
            return
    raise AssertionError(f"no way by Tab to {selector}")


def drop(page: Any, file: Path) -> None:
    """Drop a file on the page, as a file manager does."""
    page.wait_for_selector("#server strong")
    given = page.evaluate_handle(
        """([name, text]) => {
          const held = new DataTransfer();
          held.items.add(new File([text], name, {type: 'text/plain'}));
          return held;
        }""",
        [file.name, file.read_text("utf-8")],
    )
    for event in ("dragenter", "dragover", "drop"):
        page.dispatch_event("#scroller", event, {"dataTransfer": given})

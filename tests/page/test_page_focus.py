"""The focus on the page, in a real browser: strip, text of a place, pins, and ten million tokens of history."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from visit import Visit, ask, place_on_strip, replied, visit

pytestmark = pytest.mark.page

BOOK = Path(__file__).parents[2] / "docs" / "examples" / "the-ferry-at-averby.txt"


@pytest.fixture
def visitor(browser: Any, server: str) -> Iterator[Visit]:
    """On a session that has read a book and answered once."""
    with visit(browser, server) as visitor:
        page = visitor.page
        page.wait_for_selector("#server strong")
        page.set_input_files("#file", BOOK)
        page.wait_for_selector(".turn.document")
        ask(page, "Who kept the ferry at Averby?")
        replied(page)
        yield visitor


def focus_of(visitor: Visit) -> dict[str, Any]:
    """The focus of the session that is shown, as the server has it."""
    session = visitor.page.evaluate("location.hash.slice(1)")
    told: dict[str, Any] = httpx.get(f"{visitor.address}/v1/sessions/{session}/focus").json()
    return told


def test_the_text_of_a_place_is_the_histories(visitor: Visit) -> None:
    """Law: what is shown of the place under the pointer is what the server reads at that place."""
    page = visitor.page
    page.mouse.move(*place_on_strip(page, 0.3))
    page.wait_for_selector("#place blockquote:not(:empty)")
    shown = page.inner_text("#place blockquote").strip()
    start, end = (int(word.replace(",", "")) for word in page.inner_text("#place p").split(", ", 1)[0].split()[1::2])
    session = page.evaluate("location.hash.slice(1)")
    told = httpx.get(f"{visitor.address}/v1/sessions/{session}/text", params={"start": start, "end": end}).json()
    assert shown.split() == told["text"].split()
    assert end - start <= 256


def test_a_click_pins_a_place_and_another_lets_it_go(visitor: Visit) -> None:
    """Law: a click is the server's pin, which stays over a reload; a second click takes it away."""
    page = visitor.page
    page.mouse.click(*place_on_strip(page, 0.4))
    page.wait_for_selector("#pin >> text=Unpin")
    (pin,) = focus_of(visitor)["pins"]
    page.reload()
    page.wait_for_selector("#strip")
    page.mouse.move(*place_on_strip(page, 0.4))
    page.wait_for_selector("#pin >> text=Unpin")
    assert "pinned by you" in page.inner_text("#place p")
    assert focus_of(visitor)["pins"] == [pin]
    page.mouse.click(*place_on_strip(page, 0.4))
    page.wait_for_selector("#pin >> text=/^Pin$/")
    assert focus_of(visitor)["pins"] == []


def test_what_cannot_be_pinned_is_told(visitor: Visit) -> None:
    """Law: a pin for which there is no room is refused in the server's words, on the page."""
    page = visitor.page
    for share in range(10, 90, 4):
        page.mouse.click(*place_on_strip(page, share / 100))
        page.wait_for_selector("#pin:text-is('Unpin'), .notice")
        if page.query_selector(".notice"):
            break
    assert "pinned" in page.inner_text(".notice")
    # A browser reports each 400 by itself.
    visitor.wrong = [one for one in visitor.wrong if "400" not in one]


def test_the_strip_can_be_read_in_words(visitor: Visit) -> None:
    """Law: all that the strip shows stands in a table, too, and the strip says of itself what it shows."""
    page = visitor.page
    page.click("#words")
    focus = focus_of(visitor)
    assert f"{focus['tokens']:,} tokens of history" in page.inner_text("#places")
    raw = sum(1 for entry in focus["entries"] if entry["level"] == 0)
    assert 0 < page.locator("#places table >> nth=-1").locator("tbody tr").count() <= raw
    assert "tokens of history" in page.get_attribute("#strip", "aria-valuetext")


def test_ten_million_tokens_are_drawn_in_a_tenth_of_a_second(visitor: Visit) -> None:
    """Law: a refocus in a history of ten million tokens, 2,000 runs of them, takes the page 100 ms at most."""
    page = visitor.page
    from bench.page_strip import measure  # it needs playwright, which this test has and a collection need not

    times = sorted(painted for _, painted in measure(page, 8))
    assert "10,000,000" in page.inner_text("#axis-end")
    assert times[len(times) // 2] <= 100, times

"""The page for everybody: no barrier that axe-core knows, in light and dark, and on a telephone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from visit import Visit, ask, place_on_strip, replied, until, visit

pytestmark = pytest.mark.page

ROOT = Path(__file__).parents[2]
AXE = Path(os.environ.get("MEGACONTEXT_AXE", ROOT / ".venv" / "axe" / "axe.min.js"))
BOOK = ROOT / "docs" / "examples" / "the-ferry-at-averby.txt"
LEVELS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]


@pytest.fixture(scope="module")
def axe() -> str:
    if not AXE.exists():
        pytest.skip("needs axe-core: make test-page fetches it")
    return AXE.read_text("utf-8")


@pytest.fixture(params=["light", "dark"])
def visitor(browser: Any, server: str, request: pytest.FixtureRequest) -> Iterator[Visit]:
    with visit(browser, server, color_scheme=request.param) as visitor:
        visitor.page.wait_for_selector("#server strong")
        yield visitor


def fill(page: Any) -> None:
    """A session with a text, a turn and a place that is looked at."""
    page.set_input_files("#file", BOOK)
    page.wait_for_selector(".turn.document")
    ask(page, "Who kept the ferry at Averby?")
    replied(page)
    page.mouse.move(*place_on_strip(page, 0.3))
    page.wait_for_selector("#place blockquote:not(:empty)")


def violations(page: Any, axe: str) -> list[str]:
    """What axe-core finds against WCAG 2.2, levels A and AA."""
    page.evaluate(axe)
    found = page.evaluate("levels => axe.run({runOnly: levels})", LEVELS)
    assert found["passes"]
    return [f"{one['id']}: {[node['html'][:200] for node in one['nodes']]}" for one in found["violations"]]


def test_no_barriers(visitor: Visit, axe: str) -> None:
    """Law: axe-core finds no violation of level A or AA at first, in a conversation, in words and in a dialog."""
    page = visitor.page
    assert violations(page, axe) == []
    fill(page)
    assert violations(page, axe) == []
    page.click("#words")
    page.wait_for_selector("#places table")
    assert violations(page, axe) == []
    page.click("[aria-label=Rename]")
    assert violations(page, axe) == []


def test_a_telephone_shows_all_of_it(browser: Any, server: str, axe: str) -> None:
    """Law: at 360 pixels nothing lies outside the screen, and sessions and strip can be reached by finger."""
    phone = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
    with visit(browser, server, **phone) as visitor:
        page = visitor.page
        page.wait_for_selector("#server strong", state="attached")
        assert outside(page) == []
        fill(page)
        assert outside(page) == []
        page.touchscreen.tap(*place_on_strip(page, 0.5))
        page.wait_for_selector("#pin >> text=/^Pin$/")
        page.tap("#open-side")
        until(page, "document.querySelector('#side').getBoundingClientRect().x === 0")
        assert violations(page, axe) == []
        page.tap("#sessions [aria-current]")
        until(page, "document.querySelector('#side').getBoundingClientRect().right <= 0")


def outside(page: Any) -> list[str]:
    """What reaches over the screen's edge."""
    found: list[str] = page.eval_on_selector_all(
        "main *, dialog[open] *",
        """all => all.filter(one => {
          const box = one.getBoundingClientRect();
          const clipped = one.closest('.unseen, .chips, pre, .tables, svg');
          return box.width && !clipped && (box.left < -1 || box.right > innerWidth + 1);
        }).map(one => one.outerHTML.slice(0, 120))""",
    )
    return found

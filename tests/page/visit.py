"""A visit to the page in a real browser, and all that went wrong during it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

SECONDS = 60


class Visit:
    """A browser context of its own on one server: ``page`` is its first tab."""

    def __init__(self, context: Any, address: str, length: int | None) -> None:
        self.context, self.address = context, address
        self.wrong: list[str] = []
        context.set_default_timeout(SECONDS * 1000)
        context.on("request", self._own)
        context.on("console", lambda message: self._console(message.type, message.text))
        context.on("weberror", lambda error: self.wrong.append(f"thrown: {error.error}"))
        context.route("**/v1/responses", partial(_drawn, length))
        self.page = self.tab()

    def tab(self, where: str = "") -> Any:
        """Another tab on the page."""
        page = self.context.new_page()
        page.goto(f"{self.address}/{where}")
        return page

    def _own(self, request: Any) -> None:
        if not request.url.startswith((self.address, "blob:", "data:")):
            self.wrong.append(f"asked somebody else: {request.url}")

    def _console(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.wrong.append(f"console {kind}: {text}")


def _drawn(length: int | None, route: Any) -> None:
    """The likeliest words of a model of random weights are one, again and again; and it ends when it likes."""
    body = {**json.loads(route.request.post_data), "temperature": 1}
    if length:
        body |= {"ignore_eos": True, "max_output_tokens": length}
    route.continue_(post_data=json.dumps(body))


@contextmanager
def visit(browser: Any, address: str, *, length: int | None = None, **options: Any) -> Iterator[Visit]:
    """A visit after which nothing may have gone wrong. length: of replies, in tokens; None: as the model likes."""
    context = browser.new_context(**options)
    visitor = Visit(context, address, length)
    try:
        yield visitor
    finally:
        context.close()
    assert visitor.wrong == []


def ask(page: Any, question: str) -> None:
    """Type a question and send it."""
    page.wait_for_selector("#send:enabled")
    page.fill("#question", question)
    page.press("#question", "Enter")


def replied(page: Any) -> None:
    """The reply is whole, and stands as the session has it."""
    page.wait_for_selector("#stop", state="hidden")
    page.wait_for_selector(".turn.assistant[data-id]:last-child")


def turns(page: Any) -> list[tuple[str, str]]:
    """(role, text) of each turn."""
    found = page.eval_on_selector_all(
        ".turn[data-id]", "all => all.map(one => [one.classList[1], one.querySelector('.body, .name').textContent])"
    )
    return [(role, text) for role, text in found]


def place_on_strip(page: Any, share: float) -> tuple[float, float]:
    """A point of the strip, so far along it."""
    box = page.locator("#strip").bounding_box()
    return box["x"] + box["width"] * share, box["y"] + box["height"] / 2


def until(page: Any, true: str, given: Any = None) -> None:
    """Until an expression, or a function of ``given``, holds on the page. (The page's policy forbids playwright's own
    way to wait, which evaluates text inside of the page.)"""
    deadline = time.monotonic() + SECONDS
    while not page.evaluate(true, given):
        assert time.monotonic() < deadline, f"waited too long for {true}"
        page.wait_for_timeout(20)

"""The pictures of docs/page.md, as a real Chromium shows the page: SmolLM2 has read a story and answered a question."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from bench.browser import launch
from bench.common import ROOT
from bench.serving import served

STORY = ROOT / "docs" / "examples" / "the-ferry-at-averby.txt"
QUESTIONS = ("How many steps are there in the tower of Averby?", "In which year was the bell of Averby cast?")
LIMIT = 150_000
PHONE = {"width": 390, "height": 780}


def talk(page: Any) -> None:
    """Read the story, ask, and pin a place."""
    page.set_input_files("#file", STORY)
    page.wait_for_selector(".turn.document", timeout=300_000)
    for question in QUESTIONS:
        page.fill("#question", question)
        page.press("#question", "Enter")
        page.wait_for_selector("#stop", state="visible")
        page.wait_for_selector("#stop", state="hidden", timeout=300_000)
    box = page.locator("#strip").bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.38, box["y"] + box["height"] / 2)
    page.wait_for_selector("#pin:text-is('Unpin')")
    page.mouse.move(10, 10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--into", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument("flags", nargs="*", help="of megacontext serve, behind --")
    options = parser.parse_args()
    options.into.mkdir(parents=True, exist_ok=True)

    def picture(page: Any, name: str) -> None:
        page.wait_for_timeout(500)
        path = options.into / f"page-{name}.png"
        page.screenshot(path=path)
        size = path.stat().st_size
        print(f"{path}: {size:,} bytes")
        assert size <= LIMIT

    with (
        tempfile.TemporaryDirectory() as folder,
        served("--budget", "1024", "--store", f"sqlite:///{folder}/s.sqlite", *options.flags) as (client, _),
        sync_playwright() as playwright,
    ):
        browser = launch(playwright)
        page = browser.new_page(viewport={"width": 1200, "height": 760})
        page.goto(str(client.base_url))
        page.wait_for_selector("#server strong")
        picture(page, "first-visit")
        talk(page)
        picture(page, "light")
        page.emulate_media(color_scheme="dark")
        picture(page, "dark")
        page.emulate_media(color_scheme="light")
        page.set_viewport_size(PHONE)
        picture(page, "phone")
        browser.close()


if __name__ == "__main__":
    main()

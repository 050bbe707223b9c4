"""What a refocus costs the page: the strip of a history of ten million tokens, drawn in a real Chromium.

A server tells strips of 2,000 runs, as they are on the wire; the page reads, draws and words each. Script: from the
event's text to the picture; painted: until the frame after it is done. Needs make test-page's Chromium.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from typing import Any

from playwright.sync_api import sync_playwright

from bench.browser import launch
from bench.common import report
from bench.serving import served
from mc_core.focus.reasons import STATES

TOKENS, RUNS = 10_000_000, 2_000
WATCH = """
globalThis.seen = [];
new PerformanceObserver((list) => {
  for (const {duration, startTime} of list.getEntries()) {
    requestAnimationFrame(() => setTimeout(() => seen.push([duration, performance.now() - startTime])));
  }
}).observe({type: "measure"});
"""


def long_strip(turn: int, tokens: int = TOKENS, runs: int = RUNS) -> str:
    """An event as the server sends it, of a long history; what is in view moves from one ``turn`` to the next."""
    borders = [tokens * at // runs for at in range(runs + 1)]
    levels = [0 if (at + turn) % 9 == 0 else 1 + at % 3 for at in range(runs)]
    rows = [[borders[at], borders[at + 1], levels[at], 0 if levels[at] else 4] for at in range(runs)]
    opened = [[row[0], row[0] + 32, "asked", 0.5] for row in rows if row[2] == 0][:64]
    strip = {"moment": "interval", "tokens": tokens, "budget": 8192, "cost": 8000, "swap_rate": 0.1, "framed": 40}
    more = {"pin_room": 64, "tokens_per_second": 20.5, "states": STATES, "runs": rows, "opened": opened}
    return f"event: strip\ndata: {json.dumps({**strip, **more, 'closed': [[1024, 2048]]}, separators=(',', ':'))}\n\n"


def measure(page: Any, count: int) -> list[tuple[float, float]]:
    """(ms of script, ms until painted) of so many refocuses on a page that shows a session."""
    turns = iter(range(10 * count))
    page.route(
        "**/focus/stream",
        lambda route: route.fulfill(content_type="text/event-stream", body=long_strip(next(turns))),
    )
    page.add_init_script(WATCH)
    page.reload()
    while page.evaluate("seen.length") < count:
        page.wait_for_timeout(50)
    return [(script, painted) for script, painted in page.evaluate("seen")[:count]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--refocuses", type=int, default=30)
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()

    with (
        tempfile.TemporaryDirectory() as folder,
        served("--model", "tiny", "--store", f"sqlite:///{folder}/s.sqlite") as (client, _),
        sync_playwright() as playwright,
    ):
        session = client.post("/v1/sessions", json={}).json()["id"]
        browser = launch(playwright)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(f"{client.base_url}/#{session}")
        page.wait_for_selector("#server strong")
        # The first one also makes the canvas.
        times = measure(page, options.refocuses + 1)[1:]
        version = browser.version
        browser.close()
    rows: list[dict[str, Any]] = []
    for name, column in zip(("script", "painted"), zip(*times, strict=True), strict=True):
        ordered = sorted(column)
        rows.append({"ms": name, "median": round(statistics.median(ordered), 1), "max": round(ordered[-1], 1)})
    wire = len(long_strip(0))
    summary = {"tokens": TOKENS, "runs": RUNS, "refocuses": len(times), "wire_bytes": wire, "chromium": version}
    report("page_strip", rows, summary, options.save)


if __name__ == "__main__":
    main()

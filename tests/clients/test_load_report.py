"""The load tester's report: what it counts, and its page."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from clients.load.page import render
from clients.load.pictures import Axis, Series, chart, number
from clients.load.records import Outcome, Record
from clients.load.report import make_report, summary
from clients.load.settings import LoadSettings

FACTS: dict[str, Any] = {
    "model": "<b>tiny</b> & co",
    "server": "127.0.0.1:1",
    "started": "2026-01-01T00:00:00+00:00",
    "interrupted": False,
}


def record(due: float, sent: float, first: float, outcome: Outcome = "completed", **given: Any) -> Record:
    """A turn of three pieces and five tokens, 0.1 s apart, that is over 0.1 s after its last piece."""
    pieces = [] if outcome == "failed" else [first, first + 0.1, first + 0.2]
    tokens = {"prompt_tokens": 20, "history_tokens": 100, "completion_tokens": 5} if outcome == "completed" else {}
    values = {"status": "200", "pieces": pieces, "done": first + 0.3, **tokens, **given}
    return Record("0", 0, due, sent, 21, 6, outcome, **values)


def report(records: list[Record], seconds: float = 10.0, **given: Any) -> dict[str, Any]:
    chosen = LoadSettings.model_validate({"url": "http://127.0.0.1:1", "api_key": "sesame", **given})
    return make_report(chosen, records, seconds=seconds, facts=FACTS)


RECORDS = [
    record(0, 0, 0.5),
    record(1, 3, 3.5, history_tokens=1100),
    record(2, 2, 2.25, history_tokens=600),
    record(3, 3, 3.5, "disconnected"),
    record(4, 4, 4.5, "failed", status="429"),
    record(5, 5, 5.5, "failed", status="timeout"),
]


def test_counts() -> None:
    """Law: each turn counts once, by outcome and by status; tokens and throughput are of completed turns."""
    got = report(RECORDS)
    assert got["requests"] == {
        "sent": 6,
        "completed": 3,
        "failed": 2,
        "disconnected": 1,
        "by_status": {"200": 4, "429": 1, "timeout": 1},
    }
    assert got["tokens"] == {
        "prompt": 60,
        "prompt_asked": 63,
        "completion": 15,
        "completion_asked": 18,
        "longest_history": 1100,
    }
    assert list(got["throughput"].values()) == pytest.approx([0.3, 6.0, 1.5])


def test_latency_counts_from_when_a_turn_was_due() -> None:
    """Law: waiting to be sent is part of every latency, and lateness says how much of it that is."""
    latency = report(RECORDS)["latency_ms"]
    assert latency["time_to_first_token"]["max"] == pytest.approx(2500)
    assert latency["time_to_first_token"]["count"] == 4
    assert latency["time_to_first_token_from_send"]["max"] == pytest.approx(500)
    assert latency["end_to_end"]["max"] == pytest.approx(2800)
    assert latency["lateness"]["max"] == pytest.approx(2000)
    assert latency["inter_token"]["mean"] == pytest.approx(100)


def test_goodput() -> None:
    """Law: good is a completed turn within both limits; its time a token is spread over all tokens after the first."""
    # 0.2 s for the four tokens after the first are 50 ms each.
    for ttft, itl, good in ((600, 51, 2), (600, 49, 0), (300, 51, 1), (9000, 51, 3), (100, 51, 0)):
        got = report(RECORDS, slo_ttft=ttft, slo_itl=itl)["goodput"]
        assert (got["requests"], got["share"]) == (good, pytest.approx(good / 6))


def test_slope() -> None:
    """Law: the slope is milliseconds per thousand tokens of history, the groups cover all turns in order."""
    rows = [record(0, 0, 0.1 + h / 10_000, history_tokens=h) for h in range(0, 5000, 50)]
    got = report(rows)["by_history"]
    assert got["slope"]["ms_per_1k_tokens"] == pytest.approx(100)
    assert (got["slope"]["low"], got["slope"]["high"]) == (pytest.approx(100), pytest.approx(100))
    assert sum(group["count"] for group in got["groups"]) == 100
    assert [g["history_from"] for g in got["groups"]] == sorted(g["history_from"] for g in got["groups"])


def test_turns_are_grouped_by_their_number() -> None:
    """Law: time to first token by turn number has a row a number, of completed turns."""
    rows = [record(0, 0, 0.1 * (turn + 1)) for turn in (0, 0, 1)]
    for row, turn in zip(rows, (0, 0, 1), strict=True):
        row.turn = turn
    got = report(rows)["by_turn"]
    assert [(row["turn"], row["count"]) for row in got] == [(0, 2), (1, 1)]
    assert got[1]["median"] == pytest.approx(200)


def test_a_run_without_any_answer_has_a_report() -> None:
    """Law: nothing sent, or nothing but failures, is reported without made-up numbers."""
    for records in ([], RECORDS[-2:]):
        got = report(records, seconds=0.0)
        assert got["latency_ms"]["time_to_first_token"] is None
        assert got["by_history"]["slope"] is None
        assert "nothing was measured" in render(got)
        assert "ttft_p99_ms" not in summary(got)


def test_no_key_is_written() -> None:
    """Law: the report holds every setting but the key, and is plain JSON."""
    text = json.dumps(report(RECORDS), allow_nan=False)
    assert "sesame" not in text
    assert json.loads(text)["settings"]["prompt_tokens"] == "128"


class Page(HTMLParser):
    """Collects what a browser would fetch, and checks that tags are closed."""

    VOID = ("meta", "br")

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.open: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [
            value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset", "data")
        ]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_self_contained() -> None:
    """Law: the page names no URL and fetches nothing, has pictures, and shows strange names as text."""
    html = render(report(RECORDS))
    page = Page()
    page.feed(html)
    assert page.open == []
    assert page.fetched == []
    assert not re.search(r"https?:|//\w|@import|url\(|<script|<link", html)
    assert page.tags.count("svg") >= 4
    assert "&lt;b&gt;tiny&lt;/b&gt; &amp; co" in html
    assert "prefers-color-scheme: dark" in html


def test_pictures() -> None:
    """Law: every point lies within its picture, at its place between the axes' round numbers."""
    points = [(0.0, 3.0), (730.0, 41.0), (1460.0, 12.0)]
    svg = chart("T", "x", "y", [Series("a", points, "dots")])
    places = [(float(x), float(y)) for x, y in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', svg)]
    assert all(64 <= x <= 624 and 16 <= y <= 276 for x, y in places)
    assert places[1][0] == pytest.approx((places[0][0] + places[2][0]) / 2, abs=0.2)
    assert Axis.over([3, 41], 0, 100).ticks == (0, 10, 20, 30, 40, 50)
    assert Axis.over([-4, 4], 0, 100).ticks == (-4, -2, 0, 2, 4)
    assert Axis.over([0, 0], 0, 100).ticks == (0, 1)
    assert [number(value) for value in (1500, 3, 0.25, 12.34)] == ["1,500", "3", "0.25", "12.3"]

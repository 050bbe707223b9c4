"""The report as one self-contained page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from clients.load.pictures import Series, chart, number
from clients.load.show import LATENCIES, MODES, slope_words


def write_page(report: dict[str, Any], path: Path) -> None:
    """OSError if it can't be written."""
    path.write_text(render(report), encoding="utf-8")


def render(report: dict[str, Any]) -> str:
    """HTML that loads nothing: style and pictures are in it."""
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    environment.filters["number"] = number
    return environment.get_template("page.html.jinja").render(
        report=report,
        pictures=pictures(report),
        latencies=LATENCIES,
        modes=MODES,
        slope=slope_words(report["by_history"]["slope"]),
    )


def pictures(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Title, SVG and legend (colour, name) of each picture."""
    curves = report["curves_ms"]
    return [
        _picture("First token by history", "tokens of history before the turn", "ms", _history(report["by_history"])),
        _picture("First token by turn", "turn of its conversation", "ms", _turns(report["by_turn"])),
        _picture("First token, sorted", "percent of turns with at most this time", "ms", _curve(curves, "first")),
        _picture("Between tokens, sorted", "percent of gaps with at most this time", "ms", _curve(curves, "gaps")),
        _picture("Over time", "seconds since the start", "turns/s", _timeline(report["timeline"])),
    ]


def _picture(title: str, x_name: str, y_name: str, series: list[Series]) -> dict[str, Any]:
    drawn = [one for one in series if one.points]
    legend = [(one.colour, one.name) for one in drawn] if len(drawn) > 1 else []
    return {"title": title, "svg": chart(title, x_name, y_name, drawn), "legend": legend}


def _history(by_history: dict[str, Any]) -> list[Series]:
    points, slope = [(float(x), y) for x, y in by_history["points"]], by_history["slope"]
    series = [Series("a turn", points, "dots")]
    if slope is not None:
        ends = [min(x for x, _ in points), max(x for x, _ in points)]
        line = [(x, slope["intercept_ms"] + slope["ms_per_1k_tokens"] * x / 1000) for x in ends]
        series.append(Series("least squares", line, "line", "b"))
    return series


def _turns(groups: list[dict[str, Any]]) -> list[Series]:
    return [
        Series(name, [(group["turn"] + 1.0, group[key]) for group in groups], "both", colour)
        for name, key, colour in (("median", "median", "a"), ("95th percentile", "p95", "b"))
    ]


def _curve(curves: dict[str, list[float]], name: str) -> list[Series]:
    return [Series("measured", [(float(percent), value) for percent, value in enumerate(curves[name])])]


def _timeline(rows: list[dict[str, float]]) -> list[Series]:
    return [
        Series(name, [(row["at"], row[key]) for row in rows], "line", colour)
        for name, key, colour in (("due", "due", "b"), ("completed", "completed", "a"))
    ]

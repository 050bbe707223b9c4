"""Line and dot charts as inline SVG; colours come from the page's style, so that they follow its theme."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

WIDTH, HEIGHT = 640, 320
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 16, 44
TICKS = 5
MOST_DOTS = 2000
Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """Points of one kind; ``colour`` is a class of the page's style (a, b, ...)."""

    name: str
    points: Sequence[Point]
    kind: Literal["line", "dots", "both"] = "line"
    colour: str = "a"


@dataclass(frozen=True)
class Axis:
    """Numbers from ``low`` to ``high`` along ``start`` to ``end`` in the picture."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float) -> Axis:
        """From 0, or the lowest number below it, to a round number at or above the highest."""
        low, high = min(0.0, *values), max(0.0, *values)
        step = _round_step((high - low) / TICKS or 1.0)
        first, last = math.floor(low / step), max(math.ceil(high / step), 1)
        ticks = tuple(step * i for i in range(first, last + 1))
        return cls(ticks[0], ticks[-1], start, end, ticks)

    def place(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def chart(title: str, x_name: str, y_name: str, series: Sequence[Series]) -> str:
    """One <svg>; a sentence instead of it when there is nothing to draw."""
    points = [point for one in series for point in one.points]
    if not points:
        return f'<p class="empty">{escape(title)}: nothing was measured.</p>'
    x = Axis.over([point[0] for point in points], LEFT, WIDTH - RIGHT)
    y = Axis.over([point[1] for point in points], HEIGHT - BOTTOM, TOP)
    return "".join(
        [
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">',
            *(_horizontal(y, tick) for tick in y.ticks),
            *(_text(x.place(tick), HEIGHT - BOTTOM + 18, number(tick), "middle") for tick in x.ticks),
            _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x_name, "middle"),
            _text(14, (TOP + HEIGHT - BOTTOM) / 2, y_name, "middle", turned=True),
            *(_draw(one, x, y) for one in series),
            "</svg>",
        ]
    )


def number(value: float) -> str:
    """As short as it can be read: 1,500 or 0.25."""
    return f"{value:,.0f}" if abs(value) >= 100 or value == round(value) else f"{value:.3g}"


def _round_step(least: float) -> float:
    """The lowest of 1, 2, 2.5, 5, 10, 20, ... (and 0.5, 0.25, ...) at or above ``least``."""
    scale = 10.0 ** math.floor(math.log10(least))
    return next(scale * factor for factor in (1, 2, 2.5, 5, 10) if scale * factor >= least * (1 - 1e-9))


def _draw(series: Series, x: Axis, y: Axis) -> str:
    parts = []
    if series.kind in ("line", "both"):
        places = " ".join(f"{x.place(a):.1f},{y.place(b):.1f}" for a, b in series.points)
        parts.append(f'<polyline class="line {series.colour}" points="{places}"/>')
    if series.kind in ("dots", "both"):
        every = math.ceil(len(series.points) / MOST_DOTS)
        parts += [_dot(series, x, y, point) for point in series.points[::every]]
    return "".join(parts)


def _dot(series: Series, x: Axis, y: Axis, point: Point) -> str:
    told = escape(f"{series.name}: {number(point[1])} at {number(point[0])}")
    place = f'cx="{x.place(point[0]):.1f}" cy="{y.place(point[1]):.1f}"'
    return f'<circle class="dot {series.colour}" {place} r="3"><title>{told}</title></circle>'


def _horizontal(y: Axis, tick: float) -> str:
    at = y.place(tick)
    line = f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
    return line + _text(LEFT - 8, at + 4, number(tick), "end")


def _text(x: float, y: float, words: str, anchor: str, turned: bool = False) -> str:
    turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{turn}>{escape(words)}</text>'

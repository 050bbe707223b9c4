"""Draw bench/results/*.json as one picture, docs/benchmarks.svg; results that are not there are left out.

Both axes of a panel are logarithmic. Text is the page's own, so that it is read in light and dark alike.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

from bench.common import ROOT

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 420, 250, 52, 12, 34, 36
COLOURS = ("#2f7ed8", "#d9822b", "#5a9e6f", "#a05fb4")
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#444}.axis{stroke:#888;fill:none}.grid{stroke:#8883;fill:none}"
    "@media(prefers-color-scheme:dark){text{fill:#ccc}}"
)


@dataclass(frozen=True)
class Panel:
    """Lines of one kind of figure: name -> points (x, y), all above 0."""

    title: str
    across: str
    lines: dict[str, list[tuple[float, float]]]


def main() -> None:
    panels = [*_peers(), *_one("flat", "one token, bundled model, ms", "history", "ms/token", "tokens of history")]
    panels += _one("batch", "all sessions, tokens a second", "sessions", "tokens/s", "sessions at once")
    target = ROOT / "docs" / "benchmarks.svg"
    target.write_text(picture(panels))
    print(f"{target}: {', '.join(panel.title for panel in panels)}")


def _result(name: str) -> dict[str, Any] | None:
    path = ROOT / "bench" / "results" / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def _peers() -> list[Panel]:
    result = _result("peers")
    if result is None:
        return []
    titles = {
        "first token s": "SmolLM2, first token of a question, seconds",
        "reply tokens/s": "SmolLM2, tokens a second of a reply",
    }
    panels = []
    for column, title in titles.items():
        lines: dict[str, list[tuple[float, float]]] = {}
        for row in result["rows"]:
            if not isinstance(row[column], str):  # "cannot"
                lines.setdefault(row["who"], []).append((row["history"], row[column]))
        panels.append(Panel(title, "tokens of history", lines))
    return panels


def _one(name: str, title: str, x: str, y: str, across: str) -> list[Panel]:
    result = _result(name)
    if result is None:
        return []
    return [Panel(title, across, {"megacontext": [(row[x], row[y]) for row in result["rows"]]})]


def picture(panels: list[Panel]) -> str:
    """Two panels side by side, and so on below."""
    names = sorted({name for panel in panels for name in panel.lines}, key=lambda name: (name != "megacontext", name))
    colours = dict(zip(names, COLOURS, strict=False))
    placed = [
        f'<g transform="translate({WIDTH * (i % 2)},{HEIGHT * (i // 2)})">{_panel(panel, colours)}</g>'
        for i, panel in enumerate(panels)
    ]
    size = f'viewBox="0 0 {2 * WIDTH} {HEIGHT * math.ceil(len(panels) / 2)}"'
    body = "\n".join(placed)
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img"><style>{STYLE}</style>\n{body}\n</svg>\n'


def _panel(panel: Panel, colours: dict[str, str]) -> str:
    points = [point for line in panel.lines.values() for point in line]
    across = _Scale([x for x, _ in points], LEFT, WIDTH - RIGHT)
    up = _Scale([y for _, y in points], HEIGHT - BOTTOM, TOP, roomy=True)
    parts = [f'<text x="{LEFT}" y="16" font-weight="600">{escape(panel.title)}</text>']
    for tick in up.ticks:
        y = up.at(tick)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_short(tick)}</text>')
    marks = sorted({x for x, _ in points})
    parts += [f'<text x="{across.at(x):.1f}" y="{HEIGHT - 20}" text-anchor="middle">{_short(x)}</text>' for x in marks]
    parts.append(f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 4}" text-anchor="middle">{escape(panel.across)}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
    for row, (name, line) in enumerate(panel.lines.items()):
        places = [f"{across.at(x):.1f} {up.at(y):.1f}" for x, y in line]
        colour = colours[name]
        parts.append(f'<path d="M{"L".join(places)}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{p.split()[0]}" cy="{p.split()[1]}" r="3" fill="{colour}"/>' for p in places]
        parts.append(f'<text x="{LEFT + 8}" y="{TOP + 12 + 15 * row}" style="fill:{colour}">{escape(name)}</text>')
    return "".join(parts)


class _Scale:
    """A logarithmic axis from ``low`` to ``high`` on the page. roomy: a quarter of a power more at both ends."""

    def __init__(self, values: list[float], low: float, high: float, *, roomy: bool = False) -> None:
        room = 0.25 if roomy else 0.04
        self._from, self._to = math.log10(min(values)) - room, math.log10(max(values)) + room
        self._low, self._high = low, high

    def at(self, value: float) -> float:
        share = (math.log10(value) - self._from) / (self._to - self._from)
        return self._low + share * (self._high - self._low)

    @property
    def ticks(self) -> list[float]:
        """Powers of ten, and 2 and 5 times such where there are few."""
        powers = range(math.floor(self._from), math.ceil(self._to) + 1)
        steps = (1, 2, 5) if self._to - self._from < 2 else (1,)
        return [
            step * 10.0**p for p in powers for step in steps if self._from <= math.log10(step * 10.0**p) <= self._to
        ]


def _short(value: float) -> str:
    for size, letter in ((1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


if __name__ == "__main__":
    main()

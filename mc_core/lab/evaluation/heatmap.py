"""A heat map of a suite, length by depth, as a stand-alone SVG picture."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from mc_core.lab.evaluation.answers import Row

LEFT, TOP, CELL_WIDTH, CELL_HEIGHT, BOTTOM, RIGHT = 96, 40, 52, 30, 44, 16
LOW, HIGH = (178, 24, 43), (33, 102, 172)
"""Colours of 0 and 1; those between go by way of white, and are told apart by most who see colours differently."""
Grid = dict[tuple[int, int], list[float]]


def heatmaps(rows: Sequence[Row], depths: int) -> dict[str, str]:
    """Pictures by name ("needle-hybrid-gold", "needle-hybrid-answers"), one for each suite and method with depths."""
    gold: dict[str, Grid] = {}
    answers: dict[str, Grid] = {}
    for row in rows:
        if row.depth is None:
            continue
        name, place = f"{row.suite}-{row.method}", (row.length, min(depths - 1, int(row.depth * depths)))
        answers.setdefault(name, {}).setdefault(place, []).append(row.score)
        gold.setdefault(name, {}).setdefault(place, []).append(float(bool(row.gold_open)))
    parts = (("gold", "gold blocks open", gold), ("answers", "answered", answers))
    return {
        f"{name}-{part}": heatmap(f"{name}: {words}", grid, depths)
        for part, words, grids in parts
        for name, grid in grids.items()
    }


def heatmap(title: str, grid: Grid, depths: int) -> str:
    """One <svg>: a column a depth, a row a length; a cell shows the mean in percent, an empty one was not measured."""
    lengths = sorted({length for length, _ in grid})
    width, height = LEFT + depths * CELL_WIDTH + RIGHT, TOP + len(lengths) * CELL_HEIGHT + BOTTOM
    base = TOP + len(lengths) * CELL_HEIGHT
    cells = [
        _cell(grid.get((length, depth)), LEFT + depth * CELL_WIDTH, TOP + row * CELL_HEIGHT)
        for row, length in enumerate(lengths)
        for depth in range(depths)
    ]
    names = [_text(LEFT - 8, TOP + (i + 0.65) * CELL_HEIGHT, f"{n:,}", "end") for i, n in enumerate(lengths)]
    marks = [
        _text(LEFT + (i + 0.5) * CELL_WIDTH, base + 16, f"{(i + 0.5) / depths:.0%}", "middle") for i in range(depths)
    ]
    head = _text(LEFT, 24, title, "start")
    foot = _text(LEFT + depths * CELL_WIDTH / 2, base + 34, "depth of what was asked for (0 % is the oldest)", "middle")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="12" role="img" aria-label="{escape(title)}">'
        f'<rect width="{width}" height="{height}" fill="white"/>{head}{"".join([*cells, *names, *marks])}{foot}</svg>\n'
    )


def _cell(values: list[float] | None, x: int, y: int) -> str:
    place = f'x="{x}" y="{y}" width="{CELL_WIDTH - 1}" height="{CELL_HEIGHT - 1}"'
    if not values:
        return f'<rect {place} fill="#eeeeee"/>'
    share = sum(values) / len(values)
    dark = abs(share - 0.5) > 0.35
    told = f"<title>{share:.1%} of {len(values)}</title>"
    number = _text(
        x + CELL_WIDTH / 2, y + 0.65 * CELL_HEIGHT, f"{100 * share:.0f}", "middle", "white" if dark else "black"
    )
    return f'<rect {place} fill="{colour(share)}">{told}</rect>{number}'


def colour(share: float) -> str:
    """From one end's colour by way of white to the other's."""
    end, weight = (LOW, 1 - 2 * share) if share < 0.5 else (HIGH, 2 * share - 1)
    return "#" + "".join(f"{round(255 + (part - 255) * weight):02x}" for part in end)


def _text(x: float, y: float, words: str, anchor: str, fill: str = "black") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}">{escape(words)}</text>'

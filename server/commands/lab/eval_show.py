"""Tables, files and pictures of an evaluation."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mc_core.lab.evaluation.answers import Cell
from mc_core.lab.evaluation.heatmap import heatmaps
from mc_core.lab.evaluation.results import Results
from mc_core.lab.evaluation.statistics import Estimate

GRID_SUITES = ("passkey", "needle")
RESULTS = "results.json"


def show(console: Console, results: Results) -> None:
    """One table a kind of suite."""
    cells = results.cells
    if cells:
        console.print(_answers(cells))
    if results.losses:
        console.print(_losses(results))
    if results.stability is not None:
        console.print(_stability(results))
    for name, reason in results.skipped.items():
        console.print(f"{name} left out: {reason}", markup=False)
    for note in results.notes:
        console.print(note, markup=False)


def save(folder: Path, results: Results, gates: dict[str, dict[str, object]], depths: int) -> None:
    """``results.json`` and a picture of each suite with a depth grid."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {**results.to_json(), "gate": gates}
    (folder / RESULTS).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    rows = [row for row in results.rows if row.suite in GRID_SUITES]
    for name, picture in heatmaps(rows, depths).items():
        (folder / f"{name}.svg").write_text(picture, encoding="utf-8")


def _answers(cells: list[Cell]) -> Table:
    title = "gold: every block of what the answer needs stands raw; answers: mean score (95 % intervals by Wilson)"
    table = Table("suite", "length", "method", title=title)
    for column in ("trials", "gold %", "interval", "answers %", "interval"):
        table.add_column(column, justify="right")
    for cell in sorted(cells, key=lambda cell: (cell.suite, cell.length)):
        gold = ("-", "-") if cell.gold is None else _percent(cell.gold)
        shown = (cell.suite, f"{cell.length:,}", cell.method, str(cell.answers.n))
        table.add_row(*shown, *gold, *_percent(cell.answers))
    return table


def _percent(estimate: Estimate) -> tuple[str, str]:
    return f"{100 * estimate.value:.1f}", f"{100 * estimate.low:.1f} .. {100 * estimate.high:.1f}"


def _losses(results: Results) -> Table:
    views = list(dict.fromkeys(name for loss in results.losses for name in loss.means))
    table = Table(
        "source", "history", "W", "H", *views, "less recency", "less hidden", "kept", title="NLL, nats a token"
    )
    for loss in results.losses:
        means = (f"{loss.means[name]:.3f}" if name in loss.means else "-" for name in views)
        table.add_row(
            loss.source,
            f"{loss.tokens:,}",
            str(loss.budget),
            str(loss.horizon),
            *means,
            *(_signed(loss.less[name]) for name in ("recency", "hidden")),
            "-" if loss.kept is None else f"{loss.kept:.2f}",
        )
    return table


def _signed(estimate: Estimate) -> str:
    return f"{estimate.value:+.3f} ({estimate.low:+.3f} .. {estimate.high:+.3f})"


def _stability(results: Results) -> Table:
    table = Table("figure", "value", title="stability")
    assert results.stability is not None
    for name, value in vars(results.stability).items():
        table.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
    return table

"""Tables of training runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

COLUMNS = {
    "dnll_64": "dNLL@64, LOD1",
    "dnll_64_lod2": "LOD2",
    "kept_lod1": "gain kept, LOD1",
    "kept_lod2": "LOD2",
    "swap_rate": "swap rate",
    "utilization": "utilization",
    "residency": "residency",
    "seconds.tree_build": "tree s",
    "seconds.lens": "lens s",
    "seconds.allocator": "allocator s",
    "tokens": "tokens",
    "train_seconds": "train s",
}


def print_summaries(console: Console, runs: Mapping[str, Mapping[str, Any]]) -> None:
    """One row a run, a column for each figure that any run has."""
    shown = [name for name in COLUMNS if any(value_of(run, name) is not None for run in runs.values())]
    table = Table("run", *(COLUMNS[name] for name in shown), title="MC summary")
    for name, run in runs.items():
        table.add_row(name, *(_text(value_of(run, column)) for column in shown))
    console.print(table)


def print_recall(console: Console, recall: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    """One row a task, a column for each lens: share of the facts that it would open."""
    table = Table("task", *recall, "facts", title="Recall of the look-ahead")
    for task, figures in next(iter(recall.values())).items():
        shares = (f"{by_task[task]['found']:.1%}" for by_task in recall.values())
        table.add_row(task, *shares, str(figures["facts"]))
    console.print(table)


def value_of(run: Mapping[str, Any], name: str) -> Any:
    """ "seconds.lens" is ``run["seconds"]["lens"]``; None if it is not there."""
    value: Any = run
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"

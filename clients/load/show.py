"""The run in the terminal: progress while it goes, tables at its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from statistics import median
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

from clients.load.runner import Run

PERIOD = 0.25
RECENT = 50
MODES = {"closed": "closed loop", "open": "open loop", "trace": "replay of a trace"}
LATENCIES = {
    "time_to_first_token": "time to first token",
    "inter_token": "inter-token",
    "end_to_end": "end to end",
    "time_to_first_token_from_send": "first token, from send",
    "lateness": "lateness of sending",
}


@asynccontextmanager
async def watching(run: Run, sessions: int, console: Console) -> AsyncIterator[None]:
    """Show how a run goes on, until it is over."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bar = Progress(*columns, console=console)
    task = bar.add_task("preparing", total=sessions)

    def draw() -> Group:
        sending = run.phase != "preparing"
        done, total = (len(run.records), run.total) if sending else (run.prepared, sessions)
        bar.update(task, description=run.phase, completed=done, total=total)
        return Group(bar, Text(status_line(run), style="dim"))

    with Live(draw(), console=console, auto_refresh=False, transient=True) as live:

        async def refresh() -> None:
            while True:
                await asyncio.sleep(PERIOD)
                live.update(draw(), refresh=True)

        painter = asyncio.create_task(refresh())
        try:
            yield
        finally:
            painter.cancel()


def status_line(run: Run) -> str:
    """What happens now, of the last turns."""
    failed = sum(record.outcome == "failed" for record in run.records)
    recent = [time for r in run.records[-RECENT:] if (time := r.time_to_first_token) is not None]
    first = f"  ·  first token {1000 * median(recent):,.0f} ms" if recent else ""
    return f"{run.running} under way  ·  {failed} failed{first}"


def show(report: dict[str, Any], console: Console) -> None:
    """The tables."""
    requests, throughput, goodput = report["requests"], report["throughput"], report["goodput"]
    statuses = ", ".join(f"{status}: {count:,}" for status, count in requests["by_status"].items())
    counts = Table(box=None, show_header=False, pad_edge=False)
    for name, value in (
        ("model", f"{report['model']}, {MODES[report['mode']]}, {report['seconds']:.1f} s"),
        ("turns", "  ".join(f"{requests[n]:,} {n}" for n in ("sent", "completed", "failed", "disconnected"))),
        ("by status", statuses or "none"),
        ("throughput", f"{throughput['requests_per_second']:.2f} turns/s  {_token_rates(throughput)}"),
        ("goodput", f"{goodput['share']:.1%} within {goodput['slo_ttft_ms']:g} / {goodput['slo_itl_ms']:g} ms"),
        ("history", slope_words(report["by_history"]["slope"])),
    ):
        counts.add_row(Text(name, style="bold"), Text(value))
    console.print(counts)
    console.print(_latencies(report["latency_ms"]))
    if len(report["by_turn"]) > 1:
        console.print(_turns(report["by_turn"]))


def slope_words(slope: dict[str, Any] | None) -> str:
    """What a thousand tokens of history cost."""
    if slope is None:
        return "no slope: it takes three turns with histories of different lengths"
    interval = f"{slope['confidence']:.0%}: {slope['low']:+.3f} to {slope['high']:+.3f}"
    return f"first token {slope['ms_per_1k_tokens']:+.3f} ms per 1,000 tokens ({interval})"


def _token_rates(throughput: dict[str, float]) -> str:
    prompt, completion = throughput["prompt_tokens_per_second"], throughput["completion_tokens_per_second"]
    return f"{prompt:,.0f} prompt tokens/s  {completion:,.1f} reply tokens/s"


def _latencies(latency: dict[str, Any]) -> Table:
    table = Table("milliseconds", *(_right(name) for name in ("mean", "median", "p95", "p99", "max")), box=None)
    for name, words in LATENCIES.items():
        if latency[name] is not None:
            table.add_row(words, *(f"{latency[name][key]:,.1f}" for key in ("mean", "median", "p95", "p99", "max")))
    return table


def _turns(groups: list[dict[str, Any]]) -> Table:
    names = ("history", "turns", "mean", "median", "p95")
    table = Table("first token by turn", *(_right(name) for name in names), box=None)
    for group in groups:
        times = (f"{group[key]:,.1f}" for key in ("mean", "median", "p95"))
        table.add_row(str(group["turn"] + 1), f"{group['history_median']:,.0f}", f"{group['count']:,}", *times)
    return table


def _right(name: str) -> Column:
    return Column(name, justify="right")

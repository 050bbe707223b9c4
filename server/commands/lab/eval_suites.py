"""``megacontext eval SUITE..``: does it remember, against baselines at the same budget, in one run?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from mc_core.lab.evaluation.gate import gate, write_gates
from mc_core.lab.evaluation.results import Results
from mc_core.lab.evaluation.suites import Told
from server.commands.common import plain_errors
from server.commands.lab.eval_config import HELP, SuitesConfig
from server.commands.lab.eval_run import run
from server.commands.lab.eval_show import save, show
from server.commands.options import with_options


def suites_command() -> Callable[..., None]:
    """The typer command."""
    return with_options(SuitesConfig, suites, HELP)


def suites(config: SuitesConfig) -> None:
    """Run suites: facts planted in a long history and asked for, loss after a working context, how the focus moves."""

    def keep(results: Results) -> None:
        # After each part, so that what was measured outlives a run that is stopped.
        if config.out is not None:
            save(config.out, results, gate(results), config.depths)

    with plain_errors():
        with progress() as told:
            results = run(config, told, keep)
        show(Console(width=200), results)
        gates = gate(results)
        for name, verdict in gates.items():
            if verdict["measured"]:
                failed = "; ".join(verdict["failed"])
                typer.echo(f"{name}: {'passed' if verdict['passed'] else f'not passed: {failed}'}")
        if config.write:
            typer.echo(f"written to bundle.json: {', '.join(write_gates(config.bundle, gates, results))}")


@contextmanager
def progress() -> Iterator[Told]:
    """Bars on stderr, one for each thing that is done."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}

        def told(what: str, done: int, total: int) -> None:
            if what and what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            if what:
                bars.update(tasks[what], completed=done, total=total)

        yield told

"""``megacontext``: the command line; each command is imported when it runs (``commands/lazy.py`` lists them)."""

from __future__ import annotations

from typing import Annotated

import typer

from server.commands.lazy import EvalGroup, MainGroup, ModelGroup, SessionsGroup, TrainGroup

EVAL = "Measure memory: name suites (needle multikey .. nll stability, or all), or base for a base model alone."
app = typer.Typer(cls=MainGroup, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def _version(wanted: bool) -> None:
    if wanted:
        from server.version import version

        typer.echo(f"megacontext {version()}")
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="show the version and exit")]


@app.callback()
def main(version: Version = False) -> None:
    """MegaContext: conversations that never run out of context."""


model = typer.Typer(cls=ModelGroup, no_args_is_help=True, help="Models that need no hub.")
app.add_typer(model, name="model")


@model.callback()
def _model() -> None:
    """Models that need no hub."""


sessions = typer.Typer(cls=SessionsGroup, no_args_is_help=True, help="Look at a server's sessions, move them.")
app.add_typer(sessions, name="sessions")


@sessions.callback()
def _sessions() -> None:
    """Look at a server's sessions, move them."""


train = typer.Typer(cls=TrainGroup, no_args_is_help=True, help="Train models of your own.")
app.add_typer(train, name="train")


@train.callback()
def _train() -> None:
    """Train models of your own."""


evaluation = typer.Typer(cls=EvalGroup, no_args_is_help=True, help=EVAL)
app.add_typer(evaluation, name="eval")


@evaluation.callback(help=EVAL)
def _evaluation() -> None:
    """Suites are named on the command line; ``base`` measures a base model alone."""


if __name__ == "__main__":
    app()

"""``megacontext``: serve, doctor, chat, ingest, load, settings, train, ablate, eval. Models are imported late."""

from __future__ import annotations

from typing import Annotated

import typer

from clients.load.settings import LoadSettings
from server.commands.ablate import ablate
from server.commands.doctor import doctor
from server.commands.lazy import LazyEvalGroup, LazyTrainGroup
from server.commands.load import load
from server.commands.options import Field, with_options
from server.commands.serve import serve
from server.commands.settings import settings
from server.commands.talk import chat, ingest
from server.settings import Settings

EVAL = "Measure memory: name suites (needle multikey .. nll stability, or all), or base for a base model alone."
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(f"megacontext {version('megacontext')}")
        except PackageNotFoundError:
            typer.echo("megacontext, run from a source tree that is not installed")
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="show the version and exit")]


@app.callback()
def main(version: Version = False) -> None:
    """MegaContext: conversations that never run out of context."""


app.command("serve")(with_options(Settings, serve))
AS_JSON = Field("json", bool, False, False, "print one JSON object")
app.command("doctor")(with_options(Settings, doctor, extra=[AS_JSON]))
app.command("chat")(chat)
app.command("ingest")(ingest)
app.command("settings")(settings)
app.command("ablate")(ablate)
app.command("load")(with_options(LoadSettings, load))
train = typer.Typer(cls=LazyTrainGroup, no_args_is_help=True, help="Train models of your own.")
app.add_typer(train, name="train")


@train.callback()
def _train() -> None:
    """Train models of your own."""


evaluation = typer.Typer(cls=LazyEvalGroup, no_args_is_help=True, help=EVAL)
app.add_typer(evaluation, name="eval")


@evaluation.callback(help=EVAL)
def _evaluation() -> None:
    """Suites are named on the command line; ``base`` measures a base model alone."""


if __name__ == "__main__":
    app()

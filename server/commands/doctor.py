"""``megacontext doctor``."""

from __future__ import annotations

from collections.abc import Callable

import typer

from server.commands.options import Field, with_options
from server.settings import Settings


def doctor(settings: Settings, json: bool | None = None) -> None:
    """Check that a server with these settings would work: device, model, disk, store, and an acknowledged test span."""
    import orjson

    from server.doctor import examine

    findings = examine(settings)
    healthy = all(finding.status != "failed" for finding in findings)
    if json:
        typer.echo(orjson.dumps({"ok": healthy, "checks": findings}).decode())
    else:
        for finding in findings:
            typer.echo(f"{finding.status:8}{finding.check:9}{finding.detail}")
        typer.echo("\nAll is well." if healthy else "\nThis will not work; see what failed above.")
    raise typer.Exit(0 if healthy else 1)


def doctor_command() -> Callable[..., None]:
    """The command, with an option for each setting of the server and ``--json``."""
    return with_options(Settings, doctor, extra=[Field("json", bool, False, False, "print one JSON object")])

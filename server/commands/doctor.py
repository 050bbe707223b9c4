"""``megacontext doctor``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import typer

from server.commands.options import Field, with_options
from server.settings import Settings

if TYPE_CHECKING:
    from server.doctor import Status


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
        typer.echo(f"\n{verdict([finding.status for finding in findings])}")
    raise typer.Exit(0 if healthy else 1)


def verdict(statuses: Sequence[Status]) -> str:
    """The last word on all checks."""
    failed, warned = statuses.count("failed"), statuses.count("warning")
    warnings = f"{warned} warning{'s' if warned > 1 else ''}"
    if failed:
        return f"This will not work; see what failed above{f', and {warnings}' if warned else ''}."
    return f"Nothing failed; {warnings} above." if warned else "All is well."


def doctor_command() -> Callable[..., None]:
    """The command, with an option for each setting of the server and ``--json``."""
    return with_options(Settings, doctor, extra=[Field("json", bool, False, False, "print one JSON object")])

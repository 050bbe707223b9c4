"""``megacontext doctor``."""

from __future__ import annotations

import typer

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

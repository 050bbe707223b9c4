"""``megacontext fsck``."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any

import typer

SOUND, DAMAGED, UNCHECKED = 0, 1, 2


def fsck(
    store: Annotated[str, typer.Argument(metavar="STORE", help="a store's URL, or the path of a SQLite file")],
    session: Annotated[list[str] | None, typer.Option(help="of this session alone; may be repeated")] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="mend what can be made of what is sound: gists, keys, the index")
    ] = False,
    cut: Annotated[
        bool, typer.Option("--cut", help="with --repair: cut a history that lost tokens to its last whole part")
    ] = False,
    drop_notes: Annotated[
        bool, typer.Option("--drop-notes", help="with --repair: delete messages and responses that are corrupt")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Check every record, token and message of a store that no server uses. Status: 0 sound, or all mended; 1 damage is
    left; 2 something could not be checked or mended."""
    from mc_core.errors import MegaContextError

    if (cut or drop_notes) and not repair:
        raise typer.BadParameter("--cut and --drop-notes need --repair")
    try:
        report = _examine(store, session or [], repair, cut, drop_notes)
    except (MegaContextError, OSError) as error:
        typer.echo(f"megacontext: {error}", err=True)
        raise typer.Exit(UNCHECKED) from error
    if as_json:
        typer.echo(json.dumps(report, ensure_ascii=False, indent=2))
    else:
        _tell(report)
    raise typer.Exit(DAMAGED if report["left"] else SOUND)


def _examine(url: str, only: list[str], mend: bool, cut: bool, drop_notes: bool) -> dict[str, Any]:
    from server.fsck.audit import audit, audit_store
    from server.fsck.repair import Allowed, repair
    from server.stores import open_store

    check_exists(url)
    opened: Any = open_store(url)
    try:
        findings = [{**asdict(one), "repaired": None} for one in audit_store(opened)]
        sessions = opened.everything().result()
        if only:
            _check_known(only, {name for _, name in sessions})
            sessions = [(tenant, name) for tenant, name in sessions if name in only]
        allowed = Allowed(cut, drop_notes)
        for tenant, name in sessions:
            found = audit(opened, tenant, name)
            # What a damaged record says is nothing to mend by.
            can = mend and not any(one.kind == "record" for one in found)
            found.sort(key=lambda one: one.kind != "spans")
            for one in found:
                done = _mended(partial(repair, opened, one, allowed)) if can else None
                findings.append({**asdict(one), "repaired": done})
        left = sum(one["repaired"] is None for one in findings)
        return {"sessions": len(sessions), "findings": findings, "left": left}
    finally:
        opened.close()


def _mended(work: Callable[[], str | None]) -> str | None:
    """What was done; None where a server has the session."""
    from mc_core.store import LeaseHeldError

    try:
        return work()
    except LeaseHeldError as error:
        typer.echo(f"megacontext: not mended: {error}", err=True)
        return None


def check_exists(url: str) -> None:
    """A mistyped path must not become a new, sound store."""
    from server.stores import sqlite_file

    if (path := sqlite_file(url)) is not None and not path.is_file():
        raise FileNotFoundError(f"there is no store at {path}")


def _check_known(only: list[str], there: set[str]) -> None:
    from mc_core.store import UnknownSessionError

    for name in only:
        if name not in there:
            raise UnknownSessionError(name)


def _tell(report: dict[str, Any]) -> None:
    for one in report["findings"]:
        mended = f" -> {one['repaired']}" if one["repaired"] else ""
        typer.echo(f"{one['session'] or '(store)'}: {one['kind']}: {one['detail']}{mended}")
    found, left = len(report["findings"]), report["left"]
    typer.echo(f"{report['sessions']} sessions, {found} findings, {left} left")

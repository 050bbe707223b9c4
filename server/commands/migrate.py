"""``megacontext sessions migrate``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.commands.common import plain_errors

if TYPE_CHECKING:
    from server.migrate.run import Done, Migration


def migrate(
    store: Annotated[str, typer.Argument(metavar="STORE", help="a store's URL; no server uses it")],
    from_model: Annotated[str, typer.Option("--from-model", help="the model that the sessions were made with")],
    model: Annotated[str, typer.Option("--model", help="the model that is to go on with them")],
    session: Annotated[list[str] | None, typer.Option(help="this session alone; may be repeated")] = None,
    folder: Annotated[Path, typer.Option(help="where sessions are kept as files while they are under way")] = Path(
        "megacontext-migration"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object a session")] = False,
) -> None:
    """Write sessions of one tokenizer in the tokens of another. Run it again after an interruption: it goes on."""
    with plain_errors():
        from server.commands.fsck import check_exists
        from server.stores import identity, open_store

        check_exists(store)
        own = folder / hashlib.sha256(identity(store).encode()).hexdigest()[:16]
        opened: Any = open_store(store)
        looked = told = failed = 0
        try:
            migration = _migration(opened, from_model, model, own)
            own.mkdir(mode=0o700, parents=True, exist_ok=True)
            for done in _all(opened, migration, session or []):
                looked += 1
                if done is None:
                    continue
                told += 1
                failed += done.failed is not None
                typer.echo(json.dumps(asdict(done)) if as_json else _line(done))
        finally:
            opened.close()
    if not told:
        counts = f"sessions looked at: {looked}, of them in the tokens of {from_model}: 0"
        typer.echo(f"{counts}; there is nothing to migrate", err=True)
    if failed:
        raise typer.Exit(1)
    if any(own.iterdir()):
        return
    own.rmdir()
    if any(path.is_file() for path in folder.rglob("*")):
        typer.echo(f"megacontext: {folder} has files of another store, whose migration was interrupted", err=True)
    elif not any(folder.iterdir()):
        folder.rmdir()


def _all(store: Any, migration: Migration, only: list[str]) -> Iterator[Done | None]:
    """What became of each session, None of one that stays as it is; first what an interrupted run left."""
    from mc_core.errors import MegaContextError
    from mc_core.store import UnknownSessionError
    from server.migrate.run import Done

    left, there = list(migration.left()), list(store.everything().result())
    known = {session for _, session in (*left, *there)}
    for name in only:
        if name not in known:
            raise UnknownSessionError(name)
    for tenant, session in dict.fromkeys((*left, *there)):
        if only and session not in only:
            continue
        try:
            wanted = (tenant, session) in left or migration.is_old(tenant, session)
        except MegaContextError as error:
            yield Done(session, 0, failed=str(error))
            continue
        yield migration.migrate(tenant, session) if wanted else None


def _migration(store: Any, from_model: str, model: str, folder: Path) -> Migration:
    from mc_core.bundle.bundle import tokenizer_at
    from mc_core.errors import ConfigError
    from mc_core.session.factory import SessionFactory
    from server.build import bundle_of, focus_of, frames_of, template_of
    from server.migrate.migrating import Target
    from server.migrate.run import Migration
    from server.migrate.translate import Language
    from server.served_model import find_model
    from server.settings import Settings

    def named(model: str) -> Settings:
        values: dict[str, Any] = {"model": model}
        return Settings(**values)

    old = tokenizer_at(find_model(named(from_model)).path)
    settings = named(model)
    served = find_model(settings)
    bundle = bundle_of(settings, served)
    name = served.name or bundle.name
    template = template_of(bundle, name, None)
    bundle = replace(bundle, frames=frames_of(settings, bundle, template))
    if old.fingerprint == bundle.tokenizer.fingerprint:
        raise ConfigError(f"{from_model} and {model} have the same tokenizer: there is nothing to migrate")
    target = Target(name, Language.of(bundle.tokenizer), bundle.block_size)
    factory = SessionFactory(bundle, focus_of(settings, bundle)[0])
    return Migration(store, Language.of(old), target, factory, folder)


def _line(done: Done) -> str:
    if done.failed is not None:
        return f"{done.session}: failed: {done.failed}"
    if done.deleted:
        return f"{done.session}: was deleted since it was begun"
    return f"{done.session}: {done.before:,} tokens are {done.after:,} now"

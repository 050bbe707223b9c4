"""Session stores behind one protocol (``mc_core.store.SessionStore``), chosen by URL."""

from __future__ import annotations

from pathlib import Path

from mc_core.errors import ConfigError
from mc_core.store import SessionStore
from server.stores.sqlite import SqliteStore

__all__ = ["discard", "identity", "open_store", "sqlite_file"]


def open_store(url: str, *, lease_seconds: float = 30.0, max_pending: int = 256 << 20) -> SessionStore:
    """Opens the store at ``url``.

    ``sqlite:///relative/file``, ``sqlite:////absolute/file`` or a bare file path; or Redis:
    ``redis[s]://[user:password@]host[:port][/db][?namespace=megacontext:&deadline=15&patience=5&replicas=0&ssl_ca_certs=ca.pem..]``
    (see server.stores.redis.place). ``max_pending`` bounds the bytes of writes that wait.

    Raises ConfigError for another scheme, a folder or bad options, StoreError if the store can't be opened.
    """
    if (path := sqlite_file(url)) is not None:
        return SqliteStore(path, lease_seconds=lease_seconds, max_pending=max_pending)
    if (scheme := url.partition("://")[0]) in ("redis", "rediss"):
        # Here, because redis-py loads OpenTelemetry's SDK, which a server without either need not carry.
        from server.stores.redis import RedisStore

        return RedisStore(url, lease_seconds=lease_seconds, max_pending=max_pending)
    raise ConfigError(f"store must be a sqlite:/// or redis:// URL or a file path, got scheme {scheme!r}")


def discard(store: SessionStore) -> None:
    """Closes a store in which nothing was put that is to stay: files that opening it made go again."""
    if isinstance(store, SqliteStore):
        store.discard()
    else:
        store.close()


def sqlite_file(url: str) -> Path | None:
    """The file of the store at ``url``, None if it is none of SQLite's. ConfigError for a folder."""
    scheme, separator, rest = url.partition("://")
    if separator and scheme != "sqlite":
        return None
    path = Path(rest.removeprefix("/") if separator else url)
    if path.is_dir():
        raise ConfigError(f"store: {path} is a folder; give a file in it, such as {path / 'megacontext.sqlite'}")
    return path


def identity(url: str) -> str:
    """What tells the store at ``url`` from every other one, however the URL is spelled; without a password."""
    scheme, separator, _ = url.partition("://")
    if separator and scheme in ("redis", "rediss"):
        from server.stores.redis.place import Place

        return Place.parse(url).identity
    file = sqlite_file(url)
    return url if file is None else str(file.resolve())

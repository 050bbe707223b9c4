"""Session stores behind one protocol (``mc_core.store.SessionStore``), chosen by URL."""

from __future__ import annotations

from mc_core.errors import ConfigError
from mc_core.store import SessionStore
from server.stores.sqlite import SqliteStore

__all__ = ["open_store"]


def open_store(url: str, *, lease_seconds: float = 30.0) -> SessionStore:
    """Opens the store at ``url``: ``sqlite:///relative/file``, ``sqlite:////absolute/file`` or a bare file path.

    Raises ConfigError for another scheme, StoreError if the store can't be opened.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        return SqliteStore(url, lease_seconds=lease_seconds)
    if scheme == "sqlite":
        return SqliteStore(rest.removeprefix("/"), lease_seconds=lease_seconds)
    raise ConfigError(f"store must be a sqlite:/// URL or a file path, got scheme {scheme!r}")

"""The embedded store: one SQLite file."""

from server.stores.sqlite.store import SqliteStore

__all__ = ["SqliteStore"]

"""Where the Redis store is, read from its URL."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from redis.asyncio import BlockingConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from mc_core.errors import ConfigError

DEFAULTS = {"namespace": "megacontext:", "deadline": "15", "patience": "5", "replicas": "0"}
CONNECTIONS = 8
MAX_REPLICAS = 8


@dataclass(frozen=True)
class Place:
    """A store URL, taken apart. ``deadline``: seconds that a write waits for Redis; ``patience``: a read, an open.
    ``replicas``: how many must have what is acknowledged."""

    url: str = field(repr=False)
    namespace: str
    deadline: float
    patience: float
    replicas: int
    shown: str

    @classmethod
    def parse(cls, url: str) -> Place:
        """``redis[s]://[user:password@]host[:port][/db][?option=..]``: our own options, the rest is redis-py's.

        Raises ConfigError; its text never holds the password.
        """
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        own = {name: query.pop(name, default) for name, default in DEFAULTS.items()}
        if not own["namespace"]:
            raise ConfigError("store: namespace must not be empty")
        seconds = {}
        for name in ("deadline", "patience"):
            try:
                seconds[name] = float(own[name])
            except ValueError:
                seconds[name] = 0.0
            if not 0 < seconds[name] < 3600:
                raise ConfigError(f"store: {name} must be seconds above 0 and below 3600, got {own[name][:40]!r}")
        if own["replicas"] not in map(str, range(MAX_REPLICAS + 1)):
            raise ConfigError(f"store: replicas must be 0 to {MAX_REPLICAS}, got {own['replicas'][:40]!r}")
        try:
            shown = f"{parts.scheme}://{parts.hostname or 'localhost'}:{parts.port or 6379}"
        except ValueError as error:
            raise ConfigError(f"store: {error}") from None
        return cls(
            urlunsplit(parts._replace(query=urlencode(query))),
            own["namespace"],
            **seconds,
            replicas=int(own["replicas"]),
            shown=shown,
        )

    @property
    def identity(self) -> str:
        """What the store is one of: server, database and namespace."""
        told = self.pool().connection_kwargs
        where = told.get("path") or f"{told.get('host', 'localhost')}:{told.get('port', 6379)}"
        return f"{where}/{told.get('db', 0)} {self.namespace}"

    def pool(self) -> BlockingConnectionPool:
        """Connections with time-outs; what fails is retried by us, who know what may be sent twice. ConfigError."""
        try:
            pool = BlockingConnectionPool.from_url(
                self.url,
                max_connections=CONNECTIONS,
                timeout=None,
                socket_connect_timeout=2.0,
                socket_timeout=3.0,
                socket_keepalive=True,
                socket_read_size=1 << 20,
                protocol=2,
                retry=Retry(NoBackoff(), 0),
            )
            pool.connection_class(**pool.connection_kwargs)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"store: the options of {self.shown} don't fit: {error}") from None
        return pool

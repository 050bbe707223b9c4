"""Sessions in Redis; see ``store``."""

from server.stores.redis.store import RedisStore

__all__ = ["RedisStore"]

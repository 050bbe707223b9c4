"""The connections to one Redis: sends commands of the script, and knows since when Redis is away."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import EqualJitterBackoff
from redis.exceptions import (
    AskError,
    AuthenticationError,
    ClusterDownError,
    NoScriptError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from mc_core.errors import StoreError
from mc_core.store import StoreDownError
from server.stores.redis.place import Place

logger = logging.getLogger(__name__)
FORMAT = 6
"""1: gists always lay in the storage of their spans, and sessions were not listed by kind. 2: there were no notes. 3:
where rows lie had no checksum. 4: all sessions of a kind lived as long."""
SCRIPT = "".join(
    (Path(__file__).parent / f"{name}.lua").read_text() for name in ("base", "rows", "notes", "sessions", "queries")
)
FREEING = f"#!lua flags=allow-oom\n{SCRIPT}"
"""The same, for calls that need no room to speak of: a Redis at its ``maxmemory`` runs them too (from 7.0 on)."""
SHA = {script: hashlib.sha1(script.encode()).hexdigest() for script in (SCRIPT, FREEING)}
AWAY = (RedisConnectionError, RedisTimeoutError, OSError, EOFError)
"""What sending raises while Redis is away; it may come back."""
WRONG_NODE = (ReadOnlyError, ClusterDownError, AskError, TryAgainError)
"""Replies of a Redis that is not, or not yet, the one that takes writes: its address may lead to another one by now."""
REPLICATION = 2000
"""Milliseconds in which replicas must have a write; after that it is sent again."""

Command = Sequence[Any]
Reply = list[Any]


def retrying() -> Retry:
    """Without end, waiting longer each time, never in step with other servers; who fails decides when to give up."""
    return Retry(EqualJitterBackoff(cap=0.5, base=0.02), -1, cast(Any, AWAY))


class Link:
    """Used by the store's event loop alone; ``down_since`` and ``reason`` may be read from any thread."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.down_since: float | None = None
        self.reason = ""
        self._client = Redis(connection_pool=place.pool())

    async def connect(self) -> None:
        """Tries until ``patience`` is over. StoreError if Redis is away, refuses us or holds a newer format."""
        began, meta = time.monotonic(), f"{self.place.namespace}meta"

        async def greet() -> Any:
            # In a store that is there the first one changes nothing, and a full Redis may refuse it.
            _, found = await self._exchange([("HSETNX", meta, "format", str(FORMAT)), ("HGET", meta, "format")])
            if isinstance(found, Exception):
                raise found
            return found

        async def failed(error: Exception) -> None:
            if isinstance(error, AuthenticationError) or time.monotonic() - began > self.place.patience:
                raise error

        try:
            found = int(await retrying().call_with_retry(greet, failed))
            if found < FORMAT:
                (reply,) = await self.send([("upgrade", "", "", FORMAT)])
                if isinstance(reply, ResponseError):
                    raise reply
        except (RedisError, OSError, EOFError) as error:
            raise StoreError(f"can't open the store at {self.place.shown}: {error}") from None
        if found > FORMAT:
            raise StoreError(
                f"{self.place.shown} has store format {found}; this server knows up to {FORMAT}: upgrade the server"
            )

    async def send(
        self, commands: Sequence[Command], *, durable: bool = False, full: bool = False
    ) -> list[Reply | ResponseError]:
        """Runs commands in this order, in one round trip -> the reply of each. Raises one of AWAY.

        durable: not before as many replicas have what they did as the URL asks for. full: though Redis has no room.
        """
        script = FREEING if full else SCRIPT
        calls: list[Command] = [("EVALSHA", SHA[script], 0, self.place.namespace, *command) for command in commands]
        wait: list[Command] = [("WAIT", self.place.replicas, REPLICATION)] if durable and self.place.replicas else []
        replies = await self._exchange([*calls, *wait])
        if any(isinstance(reply, NoScriptError) for reply in replies):
            # A Redis that restarted has forgotten it. What ran nevertheless may run again, as after a lost reply.
            replies = (await self._exchange([("SCRIPT LOAD", script), *calls, *wait]))[1:]
        if wait and not _enough(count := replies.pop(), self.place.replicas):
            raise RedisConnectionError(f"of {self.place.replicas} replicas that must have a write, {count} do")
        if self.down_since is not None:
            logger.warning("Redis is back after %.1f s", time.monotonic() - self.down_since)
            self.down_since = None
        return replies

    async def _exchange(self, commands: Sequence[Command]) -> list[Any]:
        """Commands and their replies, errors among them. Raises one of AWAY, also where this is the wrong Redis."""
        try:
            async with self._client.pipeline(transaction=False) as pipe:
                # A replica would answer reads, of a past that nobody may go on from.
                pipe.execute_command("ROLE")
                for command in commands:
                    pipe.execute_command(*command)
                role, *replies = await pipe.execute(raise_on_error=False)
        except AWAY:
            await self._leave()
            raise
        wrong = next((str(reply) for reply in replies if _is_wrong_node(reply)), None)
        if isinstance(role, list) and role[0] != b"master":
            wrong = f"this Redis is a {role[0].decode()}, and not the primary"
        if wrong is not None:
            await self._leave()
            raise RedisConnectionError(wrong)
        return replies

    async def _leave(self) -> None:
        """Ask the address anew: it may lead elsewhere after a failover, of which open connections never learn."""
        await self._client.connection_pool.disconnect(inuse_connections=False)

    async def failed(self, error: Exception) -> None:
        """Redis did not answer."""
        self.reason = f"{type(error).__name__}: {error}"
        if self.down_since is None:
            self.down_since = time.monotonic()
            logger.warning("Redis is away: %s", self.reason)

    def down(self) -> StoreDownError:
        """The error of a call that waited for as long as it may."""
        return StoreDownError(f"{self.place.shown} can't be reached: {self.reason}")

    async def close(self, writer: str) -> None:
        """Ends the connections and removes what ``writer`` kept for itself, if Redis is there."""
        if self.down_since is None:
            try:
                await self._client.delete(f"{self.place.namespace}writer:{writer}")
            except (RedisError, *AWAY):
                pass  # it expires by itself
        await self._client.aclose()
        await self._client.connection_pool.disconnect()


def _enough(count: Any, wanted: int) -> bool:
    return isinstance(count, int) and count >= wanted


def _is_wrong_node(reply: Any) -> bool:
    # A primary that was cut off from its replicas may have a successor already.
    return isinstance(reply, (*AWAY, *WRONG_NODE)) or (
        isinstance(reply, ResponseError) and str(reply).startswith("NOREPLICAS")
    )

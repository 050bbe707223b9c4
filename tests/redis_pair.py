"""Servers of Redis behind one address, which leads to the one and later to the other."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress

from redis_server import RedisServer
from support import free_port, wait_until


class Forwarder:
    """Passes new connections on to ``target``, a port of this machine; those that there are stay where they are."""

    def __init__(self, target: int) -> None:
        self.target, self.port = target, free_port()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        listening = asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self._server = asyncio.run_coroutine_threadsafe(listening, self._loop).result()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            there = await asyncio.open_connection("127.0.0.1", self.target)
            await asyncio.gather(_pump(reader, there[1]), _pump(there[0], writer))
        writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()


class Pair:
    """A primary with its replica, at the address of a forwarder."""

    def __init__(self) -> None:
        self.old, self.new = RedisServer(repl_diskless_sync_delay=0), RedisServer(repl_diskless_sync_delay=0)
        self.new.client().replicaof("127.0.0.1", self.old.port)
        wait_until(lambda: self.new.client().info("replication")["master_link_status"] == "up")
        self.address = Forwarder(self.old.port)
        self.url = f"redis://127.0.0.1:{self.address.port}/0"

    def replicated(self) -> None:
        """Until the replica has all that the primary has."""
        with self.old.client() as client:
            wait_until(lambda: client.info("replication")["slave0"]["offset"] == client.info()["master_repl_offset"])

    def die(self) -> None:
        """kill -9 of the primary, whose replica has all and takes its place."""
        with self.old.client() as client:
            client.client_pause(60_000, all=False)
        self.replicated()
        self.promote()
        self.old.kill()

    def fail_over(self) -> None:
        """The primary hands all that it has over to its replica and becomes that one's; it keeps its connections."""
        self.old.client().execute_command("FAILOVER")
        wait_until(lambda: self.new.client().role()[0] == b"master" and self.old.client().role()[0] == b"slave")

    def promote(self) -> None:
        """The replica is a primary of its own from here on; nobody is led to it yet."""
        self.new.client().replicaof("NO", "ONE")

    def switch(self) -> None:
        """The address leads to the new primary; the old one becomes its replica, and keeps its connections."""
        self.address.target = self.new.port
        self.old.client().replicaof("127.0.0.1", self.new.port)

    def turn_round(self) -> None:
        """Ready for the next failover: the new primary is the one that fails, the other one its replica."""
        self.old, self.new = self.new, self.old
        if self.new.process.poll() is not None:
            self.new.start()
            self.new.client().replicaof("127.0.0.1", self.old.port)
        wait_until(lambda: self.new.client().info("replication")["master_link_status"] == "up")

    def stop(self) -> None:
        self.address.close()
        self.old.stop()
        self.new.stop()


class Refusing:
    """Speaks as a Redis that answers every command with the same error, as one does that is loading, or no primary."""

    def __init__(self, error: str) -> None:
        self._error, self.port = f"-{error}\r\n".encode(), free_port()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        listening = asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self._server = asyncio.run_coroutine_threadsafe(listening, self._loop).result()
        self.refused = 0

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            while head := await reader.readline():
                for _ in range(int(head[1:])):
                    size = int((await reader.readline())[1:])
                    await reader.readexactly(size + 2)
                writer.write(self._error)
                self.refused += 1
        writer.close()

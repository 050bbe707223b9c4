"""A redis-server of the tests' own: a free port, an append-only file in a folder that goes with it."""

from __future__ import annotations

import atexit
import shutil
import signal
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path

import pytest
import redis

from support import free_port


class RedisServer:
    """Starts a server, and can kill and restart it over the same files.

    ``fsync``: always or everysec; ``others``: options of redis-server with "_" for "-".
    """

    def __init__(self, fsync: str = "everysec", password: str | None = None, **others: object) -> None:
        self.binary = shutil.which("redis-server")
        if self.binary is None:
            pytest.skip("redis-server is not installed")
        self._folder = tempfile.TemporaryDirectory()
        self.port, self._fsync, self._password, self._others = free_port(), fsync, password, others
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.start()

    def start(self) -> None:
        """Start it, with what the files hold, and wait until it answers."""
        options = {"port": self.port, "bind": "127.0.0.1", "dir": self._folder.name, "save": ""}
        options |= {"appendonly": "yes", "appendfsync": self._fsync, "logfile": "redis.log"}
        options |= {name.replace("_", "-"): value for name, value in self._others.items()}
        if self._password:
            options["requirepass"] = self._password
        flags = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
        self.process = subprocess.Popen([str(self.binary), *flags], stdout=subprocess.DEVNULL)
        end = time.monotonic() + 20
        while not self._answers():
            log = Path(self._folder.name, "redis.log")
            assert self.process.poll() is None, log.read_text() if log.exists() else "redis-server ended"
            assert time.monotonic() < end, "redis-server does not answer"
            time.sleep(0.02)

    def kill(self) -> None:
        """kill -9."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def hang(self, yes: bool = True) -> None:
        """Stop it from answering, or let it go on."""
        self.process.send_signal(signal.SIGSTOP if yes else signal.SIGCONT)

    def stop(self) -> None:
        """The end, of its files too."""
        if self.process.poll() is None:
            self.kill()
        self._folder.cleanup()

    def client(self) -> redis.Redis:
        """A plain client, to look at what is there."""
        return redis.Redis(port=self.port, password=self._password)

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.BusyLoadingError:
            return False
        except redis.ConnectionError:
            return False


@cache
def shared_redis() -> RedisServer:
    """One server for all tests that leave it running."""
    server = RedisServer()
    atexit.register(server.stop)
    return server

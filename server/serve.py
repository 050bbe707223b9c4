"""Runs the application under uvicorn, with structured logs and a graceful end on SIGTERM."""

from __future__ import annotations

import logging
import socket
import ssl
import time
from types import FrameType

import uvicorn
from fastapi import FastAPI

from mc_core.errors import ConfigError
from server.app import build_app
from server.build import build_state
from server.front.hosts import is_loopback
from server.logs import configure_logs
from server.memory import settle_allocator
from server.settings import Settings
from server.state import ServerState
from server.telemetry.telemetry import Telemetry

logger = logging.getLogger(__name__)
LAST_WORDS = 5
"""Seconds that answers have to leave after the last turn was stopped."""


class DrainingServer(uvicorn.Server):
    """Drains at the first signal: it listens on and refuses new work with 503, while running requests go on.

    It ends when they have ended; after ``drain_seconds``, or at a second signal, what still runs is cancelled and told.
    """

    def __init__(self, config: uvicorn.Config, app: FastAPI, drain_seconds: float) -> None:
        super().__init__(config)
        self._app, self._drain_seconds = app, drain_seconds
        self._deadline: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.started:
            super().handle_exit(sig, frame)
            return
        patience = self._drain_seconds if self._deadline is None else 0.0
        self._deadline = time.monotonic() + patience

    async def on_tick(self, counter: int) -> bool:
        if self._deadline is not None and not self.should_exit:
            if not self._state.engine.draining:
                logger.info("draining for up to %s s", self._drain_seconds)
                self._state.engine.draining = True
                self._state.followers.close()
            overdue = time.monotonic() >= self._deadline
            if overdue:
                self._state.turns.cancel_all()
            self.should_exit = overdue or not self.server_state.tasks
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._state.followers.close()
        await super().shutdown(sockets)

    @property
    def _state(self) -> ServerState:
        state: ServerState = self._app.state.server
        return state


def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT. Running turns get ``drain_seconds`` to end; new ones are answered 503."""
    configure_logs()
    settle_allocator()
    check_tls(settings)
    # Before uvicorn starts, so that settings that do not fit are told in one line.
    telemetry = Telemetry.from_environment()
    state = build_state(settings, telemetry)
    app = build_app(settings, lambda *_: state, telemetry)
    tell_open(settings)
    DrainingServer(uvicorn_config(app, settings), app, settings.drain_seconds).run()


def tell_open(settings: Settings) -> None:
    """Warn of a server without a key that other machines can reach."""
    if is_open(settings):
        logger.warning("no API key: everybody who reaches %s may use every session", settings.host)


def is_open(settings: Settings) -> bool:
    """Whether everybody who reaches this machine may use the server."""
    return not settings.api_key and settings.unix_socket is None and not is_loopback(settings.host)


def check_tls(settings: Settings) -> None:
    """ConfigError if HTTPS is asked for with files that can't be used."""
    if settings.tls_cert is None:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.tls_cert, settings.tls_key, _no_password)
    except (OSError, ValueError) as error:
        raise ConfigError(f"tls_cert, tls_key: the files can't be used: {error}") from error


def _no_password() -> str:
    raise ValueError("the key is encrypted, and a server has nobody to ask for its password")


def uvicorn_config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """How uvicorn listens."""
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        uds=None if settings.unix_socket is None else str(settings.unix_socket),
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
        log_config=None,
        access_log=False,
        timeout_keep_alive=settings.idle_connection_seconds,
        timeout_graceful_shutdown=LAST_WORDS,
    )

"""What / answers programs with."""

from __future__ import annotations

from typing import Literal

from server.protocol.answers import Answer


class Server(Answer):
    """What answers here, and where to read on."""

    object: Literal["server"] = "server"
    version: str
    model: str
    notice: str | None
    openapi: str

"""What addresses for operators answer with."""

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


class Health(Answer):
    status: Literal["ok", "dead"]


class Readiness(Answer):
    """``degraded``: the store is away, but sessions in memory go on."""

    status: Literal["ready", "degraded", "not ready"]
    reasons: list[str]

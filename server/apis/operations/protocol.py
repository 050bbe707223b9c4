"""What addresses for operators answer with."""

from __future__ import annotations

from typing import Literal

from server.protocol.answers import Answer


class Health(Answer):
    status: Literal["ok", "dead"]


class Readiness(Answer):
    """``degraded``: the store is away, but sessions in memory go on."""

    status: Literal["ready", "degraded", "not ready"]
    reasons: list[str]

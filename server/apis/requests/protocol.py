"""Bodies of /v1/requests."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from server.apis.once import KEY
from server.protocol.answers import Answer
from server.protocol.strict import StrictModel


class CancelRequest(StrictModel):
    """The request is the one that was sent with this Idempotency-Key."""

    idempotency_key: Annotated[str, Field(**KEY)]


class CancelledRequest(Answer):
    cancelled: bool

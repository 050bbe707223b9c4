"""What the server must know of an API."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from server.errors import ApiError


@dataclass(frozen=True)
class Api:
    """An API, as its routes define it.

    tags: what OpenAPI says of groups of addresses. requests: bodies that name the model. events: what its streams
    consist of. error_body: how errors look under ``error_prefix``, where that is not OpenAI's way.
    """

    router: APIRouter
    tags: Mapping[str, str] = field(default_factory=dict)
    requests: tuple[type[BaseModel], ...] = ()
    events: tuple[type[BaseModel], ...] = ()
    error_prefix: str | None = None
    error_body: Callable[[ApiError], Mapping[str, Any]] = ApiError.body

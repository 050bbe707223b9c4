"""Headers that say what a request expects of its session."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Depends, Header, Request

from server.condition import Condition


async def condition_of(
    request: Request,
    if_match: Annotated[str, Header(max_length=1000)] = "*",
    x_if_busy: Annotated[Literal["wait", "reject"], Header()] = "wait",
) -> Condition:
    """FastAPI dependency of routes that change a session. Lines of a header that is a list are one list."""
    return Condition.of(", ".join(request.headers.getlist("if-match") or [if_match]), x_if_busy)


Expected = Annotated[Condition, Depends(condition_of)]

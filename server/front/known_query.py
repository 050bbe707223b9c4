"""Query parameters that an address does not know are refused, as fields of a body are."""

from __future__ import annotations

from collections.abc import Iterator

from fastapi import Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from server.errors import bad_request

HARMLESS = frozenset({"beta", "api-version"})
"""What clients of Anthropic and of Azure say of the API itself, whatever they ask for."""


def known_query(request: Request) -> None:
    """FastAPI dependency of all addresses below /v1/: ApiError 400 for a query parameter that means nothing there."""
    route = request.scope.get("route")
    if isinstance(route, APIRoute) and route.path.startswith("/v1/"):
        for name in request.query_params:
            if name not in HARMLESS and name not in _names(route.dependant):
                place = name.encode("utf-8", "replace").decode()[:200]
                message = f"the query parameter '{place}' is not supported at this address"
                raise bad_request(message, place, "unsupported_parameter")


def _names(of: Dependant) -> Iterator[str]:
    yield from (field.alias for field in of.query_params)
    for inner in of.dependencies:
        yield from _names(inner)

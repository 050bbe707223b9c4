"""Query parameters that an address does not know are refused, as fields of a body are, and so are those given twice;
also headers of which one value alone would count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from fastapi import Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from server.errors import bad_request

HARMLESS = frozenset({"beta", "api-version"})
"""What clients of Anthropic and of Azure say of the API itself, whatever they ask for."""
LIST = "[]"
"""How the names of parameters end that may be given more than once."""
SINGLE = ("Idempotency-Key", "Last-Event-ID")
"""Headers that name one thing."""


async def known_query(request: Request) -> None:
    """FastAPI dependency of all addresses below /v1/: ApiError 400 for a query parameter that means nothing there, or
    of which one value alone would count."""
    route = request.scope.get("route")
    if isinstance(route, APIRoute) and route.path.startswith("/v1/"):
        known = HARMLESS.union(_names(route.dependant))
        for name, times in Counter(name for name, _ in request.query_params.multi_items()).items():
            place = name.encode("utf-8", "replace").decode()[:200]
            if name not in known:
                message = f"the query parameter '{place}' is not supported at this address"
                raise bad_request(message, place, "unsupported_parameter")
            if times > 1 and not name.endswith(LIST):
                raise bad_request(f"the query parameter '{place}' is given {times} times", place, "invalid_value")


async def single_headers(request: Request) -> None:
    """FastAPI dependency of all addresses: ApiError 400 for a header that comes twice, where the first one alone would
    count."""
    for name in SINGLE:
        if (times := len(request.headers.getlist(name))) > 1:
            raise bad_request(f"the header {name} is given {times} times", name, "invalid_value")


def _names(of: Dependant) -> Iterator[str]:
    yield from (field.alias for field in of.query_params)
    for inner in of.dependencies:
        yield from _names(inner)

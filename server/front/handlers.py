"""Errors become responses here, whoever raises them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match
from starlette.types import Scope

from mc_core.errors import MegaContextError
from server.errors import CLIENT_CLOSED_REQUEST, ApiError, bad_request, to_api_error
from server.front.validation import explain

logger = logging.getLogger(__name__)


ErrorBodies = Mapping[str, Callable[[ApiError], Mapping[str, Any]]]
"""How errors look under an address, where that is not OpenAI's way."""


def install_handlers(app: FastAPI, bodies: ErrorBodies) -> None:
    """Let the app answer its errors as OpenAI's error objects, or as ``bodies`` says."""
    app.state.error_bodies = bodies
    for kind in (RequestValidationError, HTTPException, ClientDisconnect, ApiError, MegaContextError):
        app.add_exception_handler(kind, _handle)


def respond(error: BaseException, scope: Scope) -> Response:
    """The response to an error; what is the server's fault goes to the log."""
    known = _known(error)
    if known.status >= 500:
        request_id = scope.get("state", {}).get("request_id", "?")
        logger.error("request %s failed: %s", request_id, known.code, exc_info=error)
    bodies: ErrorBodies = scope["app"].state.error_bodies
    path = scope["state"]["path"]
    body_of = next((body for prefix, body in bodies.items() if path.startswith(prefix)), ApiError.body)
    return JSONResponse(body_of(known), known.status, headers=known.headers())


async def _handle(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException) and error.status_code == 405:
        error = _not_allowed(request.method, request.scope)
    elif isinstance(error, HTTPException) and error.status_code == 404 and "route" not in request.scope:
        error = _no_such_address(request.method, request.scope)
    return respond(error, request.scope)


def _known(error: BaseException) -> ApiError:
    match error:
        case RequestValidationError():
            return explain(error.errors())
        case ClientDisconnect():
            return ApiError(CLIENT_CLOSED_REQUEST, "the client went away", code="client_closed_request")
        case HTTPException():
            # An error of ours may travel as one through code that lets only these pass.
            cause = error.__cause__
            if isinstance(cause, ApiError):
                return cause
            if error.status_code == 400:
                # What FastAPI tells of a body that is no UTF-8, too deep, or holds a number of thousands of digits.
                return bad_request("the body cannot be read as JSON", None, "invalid_json")
            return ApiError(error.status_code, str(error.detail), code="http_error", more=error.headers or {})
        case _:
            return to_api_error(error)


def _not_allowed(method: str, scope: Scope) -> ApiError:
    """405 with all methods of an address; a router knows those of one of its routes only."""
    allowed = _methods(scope, scope["state"]["path"])
    if "GET" in allowed:
        allowed.insert(1, "HEAD")
    names = ", ".join(allowed)
    message = f"{method[:40]} is not allowed here; allowed: {names}"
    return ApiError(405, message, code="method_not_allowed", more={"Allow": names})


def _no_such_address(method: str, scope: Scope) -> ApiError:
    """404 that names the address; who left out /v1 is told so."""
    path, root = scope["state"]["path"], scope["root_path"]
    hint = f": did you mean {(root + '/v1' + path)[:200]}?" if _methods(scope, f"/v1{path}") else ";"
    message = (
        f"there is no {method[:40]} {(root + path)[:200]} on this server{hint} {root}/openapi.json lists its addresses"
    )
    return ApiError(404, message, code="http_error")


def _methods(scope: Scope, path: str) -> list[str]:
    """The methods that an address has; its own where it also looks like another's pattern."""
    names = ("GET", "POST", "PUT", "PATCH", "DELETE")
    told = scope["app"].openapi()["paths"].get(path)
    if told is not None:
        return [name for name in names if name.lower() in told]
    asked = {"type": "http", "path": path, "headers": []}
    routes = scope["app"].router.routes
    return [
        name for name in names if any(route.matches({**asked, "method": name})[0] is Match.FULL for route in routes)
    ]

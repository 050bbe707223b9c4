"""/openapi.json: what the routes say of themselves, made true for a server whose errors have a shape of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, get_args

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel

from server.protocol.answers import Error
from server.state import ServerState
from server.version import version

JSON = "application/json"
REF = "#/components/schemas/{model}"
TITLE = "MegaContext server"
DESCRIPTION = (
    "An inference server whose conversations never run out of context. The API is OpenAI's; sessions, documents of any "
    "size and a look at the focus come on top. In a request null means absent, and what is not supported is refused."
)
ERRORS = {
    400: "The request cannot be served as it is; `param` names the field at fault.",
    401: "The API key is missing or unknown.",
    403: "A server without keys does not answer under this name.",
    404: "There is no such model or session.",
    409: "The request contradicts what the session holds, or this server has another tokenizer or block size than it.",
    410: "The store lost turns of the session in a failover, though they had been acknowledged, told once; or the "
    "stream of `Last-Event-ID` is not there.",
    412: "The session is not as `If-Match` says: something was stored in it since.",
    413: "The body is larger than the limit.",
    415: "The body's type or coding is not supported.",
    429: "There is no room for another turn now; `Retry-After` says when to try again.",
    500: "The server failed.",
    503: "The server is shutting down, its store is away, or the session is in use elsewhere; see `Retry-After`.",
}
EVENT_ID = {"type": "string", "description": "With an Idempotency-Key: what Last-Event-ID may name."}
TURN_ERRORS = (400, 401, 403, 404, 409, 410, 412, 413, 415, 429, 500, 503)


class Described(Protocol):
    """An API, as far as the document is about it."""

    @property
    def tags(self) -> Mapping[str, str]: ...
    @property
    def requests(self) -> Sequence[type[BaseModel]]: ...
    @property
    def events(self) -> Sequence[type[BaseModel]]: ...


def errors(*statuses: int, model: type[BaseModel] = Error) -> dict[int | str, dict[str, Any]]:
    """What a route answers with beside success."""
    return {status: {"model": model, "description": ERRORS[status]} for status in statuses}


def streamed(chunk: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """A success that is one body, or with ``stream`` server-sent events whose data are chunks."""
    either = [{"$ref": REF.format(model=one.__name__)} for one in (chunk, Error)]
    told = {"type": "string", "contentMediaType": JSON, "contentSchema": {"anyOf": either}}
    events = {
        "type": "object",
        "properties": {
            "id": EVENT_ID,
            "event": {"enum": ["message", "error"]},
            "data": {"anyOf": [{"const": "[DONE]"}, told]},
        },
        "required": ["data"],
        "description": "An event. The last one is `[DONE]`, or is called `error` and tells what failed.",
    }
    content = {"text/event-stream": {"schema": events}}
    return {200: {"description": "The answer: whole, or with `stream` as it is written.", "content": content}}


def events(**kinds: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """A success that is server-sent events, by name, whose data are these."""

    def told(kind: type[BaseModel]) -> dict[str, Any]:
        schema = {"$ref": REF.format(model=kind.__name__)}
        return {"type": "string", "contentMediaType": JSON, "contentSchema": schema}

    either = [
        {
            "type": "object",
            "properties": {"event": {"const": name}, "data": told(kind)},
            "required": ["event", "data"],
        }
        for name, kind in kinds.items()
    ]
    content = {"text/event-stream": {"schema": {"anyOf": either}}}
    return {200: {"description": "Events, as long as the client stays.", "content": content}}


def typed_events(event: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """As ``streamed``, where each event is called by the ``type`` of its data."""
    told = {"type": "string", "contentMediaType": JSON, "contentSchema": {"$ref": REF.format(model=event.__name__)}}
    kinds = list(get_args(event.model_fields["type"].annotation))
    schema = {
        "type": "object",
        "properties": {"id": EVENT_ID, "event": {"enum": kinds}, "data": told},
        "required": ["event", "data"],
        "description": "An event, called by the type of its data. `error` is the last one, and tells what failed.",
    }
    content = {"text/event-stream": {"schema": schema}}
    return {200: {"description": "The answer: whole, or with `stream` as it is written.", "content": content}}


def text_or(model: type[BaseModel]) -> dict[str, Any]:
    """A body that a route reads itself: plain text, or JSON."""
    kinds = {"text/plain": {"type": "string"}, JSON: model.model_json_schema()}
    return {"requestBody": {"content": {kind: {"schema": schema} for kind, schema in kinds.items()}}}


def file_of(kind: str, what: str) -> dict[int | str, dict[str, Any]]:
    """A success that is a file."""
    return {200: {"description": what, "content": {kind: {"schema": {"type": "string"}}}}}


def file_in(*kinds: str) -> dict[str, Any]:
    """A body that is a file, which the route reads itself."""
    schema = {"type": "string", "format": "binary"}
    return {"requestBody": {"required": True, "content": {kind: {"schema": schema} for kind in kinds}}}


def operation_id(route: APIRoute) -> str:
    return route.name


def describe(app: FastAPI, apis: Sequence[Described], *, models: Sequence[str], keys: bool) -> dict[str, Any]:
    """The document. models: what the one that is served is called; keys: the server asks for one."""
    tags = [{"name": name, "description": text} for api in apis for name, text in api.tags.items()]
    about = get_openapi(
        title=TITLE,
        version=version(),
        description=DESCRIPTION,
        tags=tags,
        routes=app.routes,
    )
    for path, operations in about["paths"].items():
        for operation in operations.values():
            _tell_truth(operation, keys=keys, guarded=path.startswith("/v1/"))
    schemas = about["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for chunk in (one for api in apis for one in api.events):
        schema = chunk.model_json_schema(ref_template=REF, mode="serialization")
        schemas |= {**schema.pop("$defs", {}), chunk.__name__: schema}
    for request in (one for api in apis for one in api.requests):
        schemas[request.__name__]["properties"]["model"]["enum"] = list(models)
    if keys:
        about["components"]["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
    return about


def _tell_truth(operation: dict[str, Any], *, keys: bool, guarded: bool) -> None:
    # FastAPI thinks that a body that is none is answered 422.
    operation["responses"].pop("422", None)
    if guarded:
        # Of a query parameter that is not known.
        operation["responses"].setdefault("400", operation["responses"]["403"] | {"description": ERRORS[400]})
    if keys and guarded:
        operation["security"] = [{"bearer": []}]
    operation["responses"].pop("403" if keys else "401", None)


def install(app: FastAPI, apis: Sequence[Described], *, keys: bool) -> None:
    """Serve the document at /openapi.json; there are no pages that would load scripts from elsewhere. FastAPI
    adds below which path the server is shown."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            state: ServerState = app.state.server
            app.openapi_schema = describe(app, apis, models=state.model_names, keys=keys)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]

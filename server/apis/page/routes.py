"""/: a page for people, and in short what answers here for programs. Neither asks for a key."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Request, Response
from fastapi.responses import JSONResponse

from server.apis.api import Api
from server.apis.page.protocol import Server
from server.page.files import File, page
from server.state import ServerState, state_of
from server.version import version

router = APIRouter(tags=["operations"])
State = Annotated[ServerState, Depends(state_of)]
POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "connect-src": "'self'",
    "img-src": "'self' data:",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
    # No text becomes markup or script anywhere in the page.
    "require-trusted-types-for": "'script'",
    "trusted-types": "'none'",
}
GUARDS = {
    "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in POLICY.items()),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
FOREVER = "public, max-age=31536000, immutable"
ASK = "no-cache"
HTML: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/html": {"schema": {"type": "string"}}}, "description": "The page, or what answers."}
}


@router.get("/", response_model=Server, responses=HTML)
async def server(request: Request, state: State) -> Response:
    """A page for a browser; for programs, what answers here and where to read on."""
    root = request.scope["root_path"]
    if state.settings.page and "text/html" in request.headers.get("accept", ""):
        return _sent(page().index(root), request, ASK)
    told = Server(version=version(), model=state.model_name, notice=state.notice, openapi=f"{root}/openapi.json")
    return JSONResponse(told.model_dump(), headers={"Vary": "Accept"})


@router.get("/page/{release}/{name:path}", include_in_schema=False)
async def part(release: str, name: str, request: Request, state: State) -> Response:
    """A part of the page. Under the version that the page names it stays the same for good."""
    file = page().files.get(name) if state.settings.page else None
    if file is None:
        raise HTTPException(404, "there is no such part of the page")
    return _sent(file, request, FOREVER if release == page().version else ASK)


def _sent(file: File, request: Request, cached: str) -> Response:
    headers = {**GUARDS, "ETag": file.tag, "Cache-Control": cached, "Vary": "Accept"}
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if file.tag in known:
        return Response(status_code=304, headers=headers)
    return Response(file.body, media_type=file.media_type, headers=headers)


API = Api(router)

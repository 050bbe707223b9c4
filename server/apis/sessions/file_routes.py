"""/v1/sessions: a session as one file, out and in."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import TypeAdapter, ValidationError
from starlette.types import Receive, Scope, Send

from mc_core.store import SessionRecord
from server.apis.sessions.format import describe
from server.apis.sessions.protocol import ImportedSession, Metadata
from server.condition import etag
from server.errors import ApiError
from server.front.content import media_type
from server.futures import settled
from server.openapi import errors, file_in, file_of
from server.sessions.names import new_id
from server.state import ServerState, accepting, state_of, tenant_of
from server.transfer.checked import Checked, check, damaged
from server.transfer.form import IN_MEMORY, MEDIA_TYPE
from server.transfer.snapshot import Moved, take

router = APIRouter(prefix="/v1/sessions")
State = Annotated[ServerState, Depends(state_of)]
Tenant = Annotated[str, Depends(tenant_of)]
TRIES = 3
"""Times that a session is read beside its turns, before they have to wait for it."""
PIECE = 1 << 18
METADATA: TypeAdapter[dict[str, Any]] = TypeAdapter(Metadata)
MEDIA_TYPES = ("application/octet-stream", MEDIA_TYPE)


@router.get(
    "/{session_id}/export",
    response_class=StreamingResponse,
    responses={**errors(404, 409, 410), **file_of(MEDIA_TYPE, "The session: a JSON object a line.")},
)
async def export(session_id: str, state: State, tenant: Tenant) -> Response:
    """All of a session in one file, as it was stored last; turns go on meanwhile."""
    record, file = await _snapshot(state, session_id, tenant)
    headers = {
        "ETag": etag(record.sequence),
        "Content-Length": str(file.seek(0, 2)),
        "Content-Disposition": 'attachment; filename="session.jsonl"',
    }
    file.seek(0)
    return FileResponse(file, headers)


@router.post(
    "/import",
    status_code=201,
    response_model_exclude_unset=True,
    dependencies=[Depends(accepting)],
    responses=errors(409, 413, 415),
    openapi_extra=file_in(*MEDIA_TYPES),
)
async def import_session(
    request: Request, state: State, tenant: Tenant, response: Response, keep_id: bool = False
) -> ImportedSession:
    """A session of an exported file, of which every byte is checked before anything is stored.

    keep_id: under the id that it had, if that is free; else it gets a new one.
    """
    kind = media_type(request.headers.get("content-type", MEDIA_TYPE))
    if kind not in MEDIA_TYPES:
        raise ApiError(415, f"send {MEDIA_TYPE} or application/octet-stream, not {kind!r}", param="content-type")
    with tempfile.SpooledTemporaryFile(max_size=IN_MEMORY) as file:
        async for chunk in request.stream():
            await asyncio.to_thread(file.write, chunk)
        checked = await asyncio.to_thread(check, file)
        answer = await _stored(state, tenant, checked, keep_id)
    state.quotas.spend(tenant, checked.head.tokens)
    response.headers["ETag"] = etag(answer.sequence)
    return answer


async def _snapshot(state: ServerState, session_id: str, tenant: str) -> tuple[SessionRecord, IO[bytes]]:
    for _ in range(TRIES):
        record = await state.host.info(session_id, tenant)
        try:
            return record, await asyncio.to_thread(take, state.store, record)
        except Moved:
            continue
    async with state.host.use(session_id, tenant):
        record = await state.host.info(session_id, tenant)
        try:
            return record, await asyncio.to_thread(take, state.store, record)
        except Moved as error:
            raise ApiError(
                503, f"session {session_id} changes at another server", "server_error", "session_busy", retry_after=1
            ) from error


class FileResponse(StreamingResponse):
    """Owns its file: when the client goes, nobody runs on, or closes, the generator that reads it."""

    def __init__(self, file: IO[bytes], headers: Mapping[str, str]) -> None:
        super().__init__(_pieces(file), media_type=MEDIA_TYPE, headers=headers)
        self._file = file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._file:
            await super().__call__(scope, receive, send)


async def _pieces(file: IO[bytes]) -> AsyncIterator[bytes]:
    while piece := await asyncio.to_thread(file.read, PIECE):
        yield piece


async def _stored(state: ServerState, tenant: str, checked: Checked, keep_id: bool) -> ImportedSession:
    _check_metadata(checked.head.metadata)
    session_id = checked.head.id if keep_id else new_id()
    async with state.host.importing(session_id, tenant) as place:
        importer, left_out = place.importer, 0
        importer.check_fits(checked)
        with ThreadPoolExecutor(1) as thread:
            session = await settled(thread.submit(importer.make, checked, session_id, tenant))
        place.done(session)
        batches = importer.indexed(checked, tenant)
        while (batch := await asyncio.to_thread(next, batches, None)) is not None:
            notes, taken = batch
            left_out += taken
            if notes:
                await settled(state.engine.commit(session, notes))
        told = describe(session, state)
        return ImportedSession(**told.model_dump(exclude_unset=True), notes_left_out=left_out)


def _check_metadata(metadata: dict[str, Any]) -> None:
    try:
        METADATA.validate_python(metadata)
    except ValidationError as error:
        raise damaged(str(error.errors(include_input=False)[0]["msg"])) from error

"""/v1/sessions/{id}/ingest: text of any size into a session's history, and how far it is."""

from __future__ import annotations

import asyncio
import codecs
import hashlib
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.requests import ClientDisconnect

from mc_core.context.sources import About
from mc_core.notes import Note
from mc_core.session.session import Session
from server.apis.api import Api
from server.apis.condition import Expected
from server.apis.once import IdempotencyKey, address
from server.apis.sessions.protocol import Ingested, IngestProgress, IngestText, Kind, Title
from server.condition import NONE, Condition, etag
from server.errors import ApiError, bad_request
from server.front.content import is_json, media_type
from server.front.validation import explain
from server.ingest.ingest import Ingest
from server.ingest.interrupt import Interrupt
from server.ingest.text_pieces import PIECE
from server.ingest.upload import Upload
from server.once.book import Running
from server.once.call import Call
from server.once.kept import Asked, digest_of, reused
from server.openapi import errors, text_or
from server.state import ServerState, accepting, state_of, tenant_of
from server.streaming.choice import Choice

router = APIRouter(tags=["sessions"], responses=errors(400, 401, 403, 404, 409, 503))
State = Annotated[ServerState, Depends(state_of)]
Tenant = Annotated[str, Depends(tenant_of)]


@router.post(
    "/v1/sessions/{session_id}/ingest",
    dependencies=[Depends(accepting)],
    response_model=Ingested,
    responses=errors(410, 412, 413, 415),
    openapi_extra=text_or(IngestText),
)
async def ingest(
    session_id: str,
    request: Request,
    state: State,
    tenant: Tenant,
    partial: bool = False,
    offset: Annotated[int, Query(ge=0)] = 0,
    title: Annotated[Title | None, Query()] = None,
    kind: Annotated[Kind | None, Query()] = None,
    idempotency_key: IdempotencyKey = None,
    expected: Expected = NONE,
) -> Response:
    """text/plain, streamed, or JSON {"text"}. Nothing of it counts if it breaks off or is not UTF-8.

    partial: what was taken in counts all the same, and the rest may follow, from byte ``offset`` of the text on.
    title, kind: what the text is, which the model is told where it is shown a part of it; in JSON they are fields.
    """
    _check(request, partial, offset)
    if is_json(_content_type(request)) and (title or kind):
        raise bad_request("with application/json, title and kind are fields of the body", "title" if title else "kind")
    await state.host.known(session_id, tenant)
    asked = None if idempotency_key is None else Asked.of(idempotency_key)
    interrupt, call, read = Interrupt(), Call(state.book, tenant, asked), hashlib.sha256()
    digest: Callable[[bytes], object] = (lambda chunk: None) if asked is None else read.update
    async with Upload(request.receive, lambda: interrupt.stop(ClientDisconnect()), digest=digest) as upload:
        about = About(title, kind or "document")

        def kept(session: Session, answer: Ingested) -> list[Note]:
            """The answer, now that all of the body was read."""
            return [call.ingested(session, _digest(request, read.digest()), _body(answer))] if asked else []

        work = _ingest(
            session_id, tenant, state, request, upload, interrupt, about, partial, offset, expected, call, kept
        )
        if asked is None:
            return _json(*await interrupt.run(work))
        return await interrupt.run(_once(call, asked, work, upload, lambda: _digest(request, read.digest())))


async def _once(
    call: Call, asked: Asked, work: Coroutine[Any, Any, tuple[Ingested, int]], upload: Upload, digest: Callable[[], str]
) -> Response:
    """What the ingest answers, or, once its body is known to be the same, answered before. ApiError 409 for a key of
    another request."""
    try:
        found = await call.book.begin(call.tenant, asked)
        if isinstance(found, Running):
            try:
                answer = await work
                call.count()
                return _json(*answer)
            finally:
                call.over()
        if isinstance(found, Choice):  # a turn that is told now, and no ingest
            raise reused()
        async for _ in upload.chunks():
            pass
        replace(asked, digest=digest()).check(found.digest)
        return found.answer()
    finally:
        work.close()


def _digest(request: Request, body: bytes) -> str:
    return digest_of(*address(request), media_type(_content_type(request)).encode(), body)


def _body(answer: Ingested) -> dict[str, Any]:
    return answer.model_dump(mode="json", exclude_unset=True)


def _json(answer: Ingested, sequence: int) -> Response:
    return JSONResponse(_body(answer), headers={"ETag": etag(sequence)})


@router.get("/v1/sessions/{session_id}/ingest")
async def progress(session_id: str, state: State, tenant: Tenant) -> IngestProgress:
    """How far the ingest under way is; without one, the byte from which one in parts that broke off may go on."""
    running = state.host.progress(session_id, tenant)
    if running is not None:
        return IngestProgress(**running)
    session = state.host.look(session_id, tenant)
    if session is None:
        async with state.host.use(session_id, tenant) as lease:
            session = lease.session
    return IngestProgress(active=False, tokens=0, bytes=0, offset=session.ingest_offset)


async def _ingest(
    session_id: str,
    tenant: str,
    state: ServerState,
    request: Request,
    upload: Upload,
    interrupt: Interrupt,
    about: About,
    partial: bool,
    offset: int,
    expected: Condition,
    call: Call,
    kept: Callable[[Session, Ingested], Sequence[Note]],
) -> tuple[Ingested, int]:
    """The answer, and the session's sequence number then."""
    with state.telemetry.spans.ingest() as span:
        async with state.host.use(session_id, tenant, expected) as lease:
            span.set_attribute("gen_ai.conversation.id", lease.session.id)
            lease.on_stop(interrupt.stop)
            await call.check_new()
            texts = _plain_text(upload, offset)
            if is_json(_content_type(request)):
                texts, about = await _json_text(upload)
            work = Ingest(state, lease, about, in_parts=partial, offset=offset)

            def told() -> Ingested:
                answer = Ingested(tokens_added=work.taken_in, tokens=work.session.tokens)
                return answer.model_copy(update={"offset": work.session.ingest_offset}) if partial else answer

            try:
                await work.take_in(texts, lambda: kept(work.session, told()))
            finally:
                span.set_attribute("mc.tokens_added", work.added)
                state.metrics.ingested.inc(work.added)
                state.quotas.spend(tenant, work.added)
            answer = told(), work.session.sequence
    await state.host.residents.leftovers.passed(work.added)
    return answer


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "text/plain")


def _check(request: Request, partial: bool, offset: int) -> None:
    """ApiError for a body that can't be read so."""
    header = _content_type(request).lower()
    if is_json(header):
        if partial:
            raise bad_request("an ingest in parts takes text/plain, for its offsets are bytes of the text", "partial")
    elif media_type(header) != "text/plain":
        kind = media_type(header)
        raise ApiError(415, f"send text/plain or application/json, not {kind!r}", param="content-type")
    charset = header.partition("charset=")[2].partition(";")[0].strip("\"' ") or "utf-8"
    if charset.replace("_", "-") not in ("utf-8", "utf8", "us-ascii"):
        raise ApiError(415, f"send UTF-8 text, not {charset!r}", param="content-type")
    if offset and not partial:
        raise bad_request("an offset needs partial=true", "offset")


async def _plain_text(upload: Upload, offset: int) -> AsyncIterator[str]:
    """The body as text; ``offset``: where it begins in the text that errors are about."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    size = offset
    try:
        async for chunk in upload.chunks():
            # What was held back from the last chunk comes first.
            held = len(decoder.getstate()[0])
            if text := decoder.decode(chunk):
                yield text
            size += len(chunk)
        held = len(decoder.getstate()[0])
        decoder.decode(b"", True)
    except UnicodeDecodeError as error:
        place = size - held + error.start
        raise bad_request(f"the body is not UTF-8: {error.reason} at byte {place}", "body", "invalid_utf8") from error


async def _json_text(upload: Upload) -> tuple[AsyncIterator[str], About]:
    """The text in a JSON body, and what it is."""
    body = b"".join([chunk async for chunk in upload.chunks()]).removeprefix(codecs.BOM_UTF8)
    try:
        told = await asyncio.to_thread(IngestText.model_validate_json, body)
    except ValidationError as error:
        raise explain(error.errors(include_input=False)) from error
    return _pieces(told.text), About(told.title, told.kind)


async def _pieces(text: str) -> AsyncIterator[str]:
    """A piece at a time, so that nobody copies it as a whole."""
    for at in range(0, len(text), PIECE):
        yield text[at : at + PIECE]


API = Api(router)

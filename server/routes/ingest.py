"""POST /v1/sessions/{id}/ingest: text of any size into a session's history. All of it counts, or none."""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import Future
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Request
from pydantic import ValidationError

from mc_core.session.session import Session
from server.errors import ApiError, bad_request
from server.futures import settled
from server.protocol.sessions import IngestText
from server.sessions import Lease
from server.state import ServerState, accepting, state_of, tenant_of
from server.text_pieces import batches, encode_pieces
from server.validation import explain

router = APIRouter()


@router.post("/v1/sessions/{session_id}/ingest", dependencies=[Depends(accepting)])
async def ingest(
    session_id: str,
    request: Request,
    state: Annotated[ServerState, Depends(state_of)],
    tenant: Annotated[str, Depends(tenant_of)],
) -> dict[str, int]:
    """text/plain, streamed, or JSON {"text"}. Nothing of it counts if it breaks off or is not UTF-8."""
    texts = _texts(request)
    with state.telemetry.spans.ingest() as span:
        async with state.host.use(session_id, tenant) as lease:
            span.set_attribute("gen_ai.conversation.id", lease.session.id)
            before = lease.session.committed_tokens
            try:
                await _unless_deleted(lease, _take_in(state, lease.session, texts))
            except BaseException:
                await settled(state.engine.rollback(lease.session))
                raise
            after = lease.session.committed_tokens
        span.set_attribute("mc.tokens_added", after - before)
    state.metrics.ingested.inc(after - before)
    await state.host.leftovers.passed(after - before)
    return {"tokens_added": after - before, "tokens": after}


async def _unless_deleted(lease: Lease, work: Coroutine[Any, Any, None]) -> None:
    """Do the work; ApiError 404 if the session is deleted meanwhile."""
    task = asyncio.create_task(work)
    deleted = False

    def stop() -> None:
        nonlocal deleted
        deleted = True
        task.cancel()

    lease.on_delete(stop)
    try:
        await task
    except asyncio.CancelledError:
        if deleted:
            raise ApiError(404, "the session was deleted while it read this text", code="session_not_found") from None
        raise


async def _take_in(state: ServerState, session: Session, texts: AsyncIterator[str]) -> None:
    """Tokenize the next batch while the engine takes in the last: at most two batches are in memory."""
    taken: Future[int] | None = None
    tokenizer, fresh = state.bundle.tokenizer, session.tokens == 0
    try:
        async for batch in batches(texts, tokenizer):
            ids = await asyncio.to_thread(encode_pieces, tokenizer, batch, fresh)
            if taken is not None:
                await settled(taken)
            elif session.tokens == 0:
                ids = np.concatenate([tokenizer.prefix_ids, ids])
            taken = state.engine.ingest(session, ids)
    finally:
        # Whatever happened, nothing may be under way when the session is rolled back.
        if taken is not None:
            await settled(taken)
    await settled(state.engine.commit(session))


def _texts(request: Request) -> AsyncIterator[str]:
    header = request.headers.get("content-type", "text/plain").lower()
    kind = header.partition(";")[0].strip()
    if kind == "application/json":
        return _json_text(request)
    if kind != "text/plain":
        raise ApiError(415, f"send text/plain or application/json, not {kind!r}", param="content-type")
    charset = header.partition("charset=")[2].partition(";")[0].strip("\"' ") or "utf-8"
    if charset.replace("_", "-") not in ("utf-8", "utf8", "us-ascii"):
        raise ApiError(415, f"send UTF-8 text, not {charset!r}", param="content-type")
    return _plain_text(request)


async def _plain_text(request: Request) -> AsyncIterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    size = 0
    try:
        async for chunk in request.stream():
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


async def _json_text(request: Request) -> AsyncIterator[str]:
    body = await request.body()
    try:
        parsed = await asyncio.to_thread(IngestText.model_validate_json, body)
    except ValidationError as error:
        raise explain(error.errors(include_input=False)) from error
    yield parsed.text

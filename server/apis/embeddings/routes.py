"""POST /v1/embeddings."""

from __future__ import annotations

from base64 import b64encode
from typing import Annotated

import orjson
from fastapi import APIRouter, Depends, Request, Response

from server.apis.api import Api
from server.apis.embeddings.protocol import EmbeddingList, EmbeddingRequest
from server.embedder import Embedded, Embedder
from server.errors import CLIENT_CLOSED_REQUEST, bad_request, not_found
from server.openapi import TURN_ERRORS, errors
from server.state import ServerState, accepting, state_of, tenant_of
from server.streaming.response import unless_gone

router = APIRouter(dependencies=[Depends(accepting)], tags=["embeddings"])


@router.post("/v1/embeddings", response_model=EmbeddingList, responses=errors(*TURN_ERRORS))
async def create_embeddings(
    body: EmbeddingRequest,
    request: Request,
    state: Annotated[ServerState, Depends(state_of)],
    tenant: Annotated[str, Depends(tenant_of)],
) -> Response:
    """Vectors of texts, by the server's sentence encoder."""
    embedder = _encoder(state, body)
    done = await unless_gone(embedder.embed(body.texts), request.receive)
    if done is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    state.quotas.spend(tenant, done.tokens)
    told = await embedder.aside(lambda: _written(embedder.name, done, base64=body.encoding_format == "base64"))
    return Response(told, media_type="application/json")


def _encoder(state: ServerState, body: EmbeddingRequest) -> Embedder:
    """ApiError 404 if there is none, or none of this name; 400 for vectors of a size that it does not make."""
    embedder = state.embedder
    if embedder is None:
        raise not_found(
            "this server has no sentence encoder, so it makes no embeddings: start it with --encoder", "no_encoder"
        )
    if body.model != embedder.name:
        raise not_found(
            f"the model {body.model!r} makes no embeddings here; {embedder.name!r} does", "model_not_found", "model"
        )
    size = embedder.encoder.size
    if body.dimensions not in (None, size):
        raise bad_request(
            f"dimensions: vectors of {embedder.name} have {size} numbers and cannot be cut to {body.dimensions}",
            "dimensions",
            "unsupported_parameter",
        )
    return embedder


def _written(name: str, done: Embedded, *, base64: bool) -> bytes:
    rows = ((b64encode(row.astype("<f4").tobytes()).decode() if base64 else row) for row in done.vectors)
    usage = {"prompt_tokens": done.tokens, "total_tokens": done.tokens}
    data = [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)]
    body = {"object": "list", "data": data, "model": name, "usage": usage}
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)


API = Api(router, tags={"embeddings": "Vectors of texts, where the server has a sentence encoder."})

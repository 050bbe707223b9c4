"""/health, /ready and /metrics: for orchestrators and dashboards, without a key."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Depends, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from server.apis.api import Api
from server.apis.operations.protocol import Health, Readiness
from server.state import ServerState, state_of

router = APIRouter(tags=["operations"])
State = Annotated[ServerState, Depends(state_of)]


@router.get("/health", responses={500: {"model": Health, "description": "The engine has stopped."}})
async def health(state: State, response: Response) -> Health:
    """Live: the process answers and the engine's thread runs."""
    response.status_code = 200 if state.engine.alive else 500
    return Health(status="ok" if state.engine.alive else "dead")


@router.get("/ready", responses={503: {"model": Readiness, "description": "New turns must go elsewhere."}})
async def ready(state: State, response: Response) -> Readiness:
    """Ready for new turns, or the reasons why not. Degraded: the store is away, but sessions in memory go on."""
    reasons, degraded = [], False
    if not state.engine.alive:
        reasons.append("the engine has stopped")
    if state.engine.draining:
        reasons.append("draining: the server is shutting down")
    store = await asyncio.wrap_future(state.store.healthy())
    if not store.ok:
        degraded = store.degraded and not reasons
        reasons.append(f"store: {store.detail}")
    response.status_code = 503 if reasons and not degraded else 200
    return Readiness(status="degraded" if degraded else "not ready" if reasons else "ready", reasons=reasons)


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(state: State) -> Response:
    """All metrics, as Prometheus reads them."""
    return Response(generate_latest(state.metrics.registry), media_type=CONTENT_TYPE_LATEST)


API = Api(router, tags={"operations": "For orchestrators and dashboards."})

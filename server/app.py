"""Builds the application: routes, limits, and a life span. Nothing is global; a process may hold several."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import APIRouter, Depends, FastAPI
from starlette.middleware.cors import CORSMiddleware

from mc_core.models.threads import aside
from server import openapi
from server.apis.registry import APIS
from server.build import build_state, close_state
from server.front.front import Front
from server.front.gate import Gate
from server.front.handlers import install_handlers
from server.front.hosts import Hosts
from server.front.known_query import known_query, single_headers
from server.front.limits import BodyLimit
from server.front.quota_gate import HEADERS, QuotaGate
from server.once.kept import REPLAYED
from server.settings import Settings
from server.state import ServerState
from server.telemetry.telemetry import Telemetry

EXPOSED = ["ETag", REPLAYED, "X-Request-ID", "Request-ID", "X-Session-ID", "Retry-After", *HEADERS]
"""Headers of ours that pages of other origins may read."""

ROUTES = APIRouter(generate_unique_id_function=openapi.operation_id)
"""All addresses, for every app of a process: FastAPI reads the signatures of a router's routes, a tenth of a second's
work, when the first request meets them, and keeps what it read with the router that took them in."""
for _api in APIS:
    ROUTES.include_router(_api.router, dependencies=[Depends(known_query), Depends(single_headers)])


def build_app(
    settings: Settings,
    build: Callable[[Settings, Telemetry], ServerState] = build_state,
    telemetry: Telemetry | None = None,
) -> FastAPI:
    """An app that loads the model and opens the store when it starts, and gives both back when it ends.

    telemetry: None takes what the environment asks for.
    """
    told = telemetry or Telemetry.from_environment()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # What computes beside the engine later must not keep threads of its own.
        state = await asyncio.to_thread(aside, lambda: build(settings, told))
        app.state.server = state
        state.engine.start()
        watches = (state.metrics.watch_loop(), state.metrics.watch_store(state.store))
        host = state.host
        keeping = host.leases.keep(), host.leases.lend(), host.expiry.keep(), host.residents.hibernate()
        work = (*watches, *keeping, host.kv_files.keep())
        chores = [asyncio.create_task(chore) for chore in work]
        try:
            yield
        finally:
            for chore in chores:
                chore.cancel()
            await asyncio.gather(*chores, return_exceptions=True)
            await close_state(state)

    app = FastAPI(
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
        routes=ROUTES.routes,
    )
    # The last one added is the first that a request meets.
    app.add_middleware(BodyLimit, limit=settings.max_body_bytes, streamed_limit=settings.max_ingest_bytes)
    hosts = None if settings.api_key else Hosts(settings.host, settings.allowed_host)
    app.add_middleware(QuotaGate)
    app.add_middleware(Gate, hosts=hosts)
    if settings.cors_origin:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origin,
            allow_methods=["GET", "POST", "PATCH", "DELETE"],
            allow_headers=["*"],
            expose_headers=EXPOSED,
        )
    app.add_middleware(Front, root_path=settings.root_path)
    install_handlers(app, {api.error_prefix: api.error_body for api in APIS if api.error_prefix is not None})
    openapi.install(app, APIS, keys=bool(settings.api_key))
    told.instrument(app)
    return app

"""What the routes need, built once: one object instead of globals."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from mc_core.bundle.bundle import Bundle
from mc_core.engine.engine import Engine
from mc_core.models.sampling_params import SamplingParams
from mc_core.store import SessionStore
from server.auth import Keys
from server.embedder import Embedder
from server.errors import draining, store_down
from server.grammar.shaper import Shaper
from server.live.followers import Followers
from server.once.book import Book
from server.quotas import Quotas
from server.sessions.host import SessionHost
from server.settings import Settings
from server.streaming.runs import Runs
from server.telemetry.metrics import Metrics
from server.telemetry.telemetry import Telemetry
from server.templates.chat_template import ChatTemplate
from server.turns.service import TurnService


@dataclass
class ServerState:
    """notice: what users of the model must know, if it isn't the one that they expect."""

    settings: Settings
    model_name: str
    notice: str | None
    created: int
    bundle: Bundle
    engine: Engine
    store: SessionStore
    host: SessionHost
    turns: TurnService
    template: ChatTemplate | None
    shaper: Shaper
    keys: Keys
    quotas: Quotas
    telemetry: Telemetry
    followers: Followers
    book: Book
    embedder: Embedder | None = None
    runs: Runs = field(default_factory=Runs)

    @property
    def model_names(self) -> tuple[str, ...]:
        """What requests may call the model: its own name first."""
        return tuple(dict.fromkeys((self.model_name, *self.settings.alias)))

    @property
    def sampling(self) -> SamplingParams:
        """How tokens are drawn where a request says nothing."""
        own = self.bundle.sampling if self.settings.sampling_defaults == "model" else SamplingParams()
        return dataclasses.replace(own, max_tokens=self.settings.max_tokens)

    @property
    def metrics(self) -> Metrics:
        return self.telemetry.metrics


# Dependencies are asynchronous though they wait for nothing: FastAPI runs others in threads, one after the other, and
# that is a third of the work of a short request.


async def state_of(request: Request) -> ServerState:
    """FastAPI dependency: the server's state."""
    state: ServerState = request.app.state.server
    return state


async def tenant_of(request: Request) -> str:
    """FastAPI dependency: the caller's tenant, as its key told."""
    tenant: str = request.state.tenant
    return tenant


async def accepting(state: Annotated[ServerState, Depends(state_of)]) -> None:
    """FastAPI dependency of routes that begin new work: 503 while the server drains or its store has no room."""
    if state.engine.draining:
        raise draining()
    if (reason := state.store.overloaded()) is not None:
        raise store_down(reason)

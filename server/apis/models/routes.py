"""GET /v1/models."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends

from server.apis.api import Api
from server.apis.models.protocol import AboutEncoder, AboutModel, Encoder, Model, ModelList, Sampling
from server.apis.prelude import check_model
from server.openapi import errors
from server.state import ServerState, state_of, tenant_of

router = APIRouter(dependencies=[Depends(tenant_of)], tags=["models"], responses=errors(401, 403))
State = Annotated[ServerState, Depends(state_of)]


@router.get("/v1/models")
async def list_models(state: State) -> ModelList:
    """The one model that is served, under each of its names; then the sentence encoder, if there is one."""
    return ModelList(data=[*(_describe(state, name) for name in state.model_names), *_encoders(state)])


@router.get("/v1/models/{model:path}", responses=errors(404))
async def get_model(model: str, state: State) -> Model | Encoder:
    """The model by one of its names, or the sentence encoder."""
    for encoder in _encoders(state):
        if encoder.id == model:
            return encoder
    check_model(state, model)
    return _describe(state, model)


def _describe(state: ServerState, name: str) -> Model:
    core, sampling = state.engine.core, state.sampling
    about = AboutModel(
        notice=state.notice,
        family=state.bundle.decoder.config.family,
        vocab_size=state.bundle.decoder.config.vocab_size,
        context_window=state.bundle.decoder.config.max_position_embeddings,
        max_history=None,
        budget=core.focus.budget,
        block_size=core.focus.block_size,
        lens=core.focus.lens,
        allocator=core.focus.allocator,
        positions=core.runner.policy.name,
        repair=core.runner.mode,
        hidden_gists=state.bundle.hidden_gists,
        networks=state.bundle.manifest.networks(),
        sampling=Sampling(**{name: getattr(sampling, name) for name in Sampling.model_fields}),
    )
    return Model(id=name, created=state.created, owned_by="megacontext", root=state.model_name, x_megacontext=about)


def _encoders(state: ServerState) -> list[Encoder]:
    if (embedder := state.embedder) is None:
        return []
    about = AboutEncoder(dimensions=embedder.encoder.size, max_input_tokens=embedder.encoder.max_tokens)
    name = embedder.name
    return [Encoder(id=name, created=state.created, owned_by="megacontext", root=name, x_megacontext=about)]


API = Api(router, tags={"models": "The model that is served."})

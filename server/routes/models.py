"""GET /v1/models."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends

from server.routes.answer import check_model
from server.state import ServerState, state_of, tenant_of

router = APIRouter(dependencies=[Depends(tenant_of)])


@router.get("/v1/models")
async def list_models(state: Annotated[ServerState, Depends(state_of)]) -> dict[str, Any]:
    return {"object": "list", "data": [_describe(state)]}


@router.get("/v1/models/{model:path}")
async def get_model(model: str, state: Annotated[ServerState, Depends(state_of)]) -> dict[str, Any]:
    check_model(state, model)
    return _describe(state)


def _describe(state: ServerState) -> dict[str, Any]:
    core = state.engine.core
    return {
        "id": state.model_name,
        "object": "model",
        "created": state.created,
        "owned_by": "megacontext",
        "x_megacontext": {
            "family": state.bundle.decoder.config.family,
            "vocab_size": state.bundle.decoder.config.vocab_size,
            "budget": core.focus.budget,
            "block_size": core.focus.block_size,
            "lens": core.focus.lens,
            "allocator": core.focus.allocator,
            "positions": core.kv_model.policy.name,
            "repair": core.kv_model.mode,
            "hidden_gists": state.bundle.hidden_gists,
            "networks": state.bundle.manifest.networks(),
        },
    }

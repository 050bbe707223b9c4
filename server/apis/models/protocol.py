"""What /v1/models answers with."""

from __future__ import annotations

from typing import Literal

from server.protocol.answers import Answer, Count


class Sampling(Answer):
    """How tokens are drawn where a request says nothing."""

    temperature: float
    top_p: float
    top_k: Count
    min_p: float
    repetition_penalty: float


class AboutModel(Answer):
    """``networks``: each network's name and whether it has passed its evaluation. ``notice``: what users must know
    where this is not the model that they expect, such as the bundled one in the place of one that could not be fetched.
    ``context_window``: what the model itself can see at once; ``max_history``: null, for a history has no bound.
    """

    notice: str | None
    family: str
    vocab_size: Count
    context_window: Count
    max_history: None
    budget: Count
    block_size: Count
    lens: str
    allocator: str
    positions: str
    repair: str
    hidden_gists: bool
    networks: dict[str, str]
    sampling: Sampling


class AboutEncoder(Answer):
    """Of a sentence encoder: how many numbers a vector has, and how many tokens one text may have."""

    dimensions: Count
    max_input_tokens: Count


class ListedModel(Answer):
    """``root``: the model that this name stands for; its own name, but for aliases."""

    id: str
    object: Literal["model"] = "model"
    created: Count
    owned_by: str
    root: str


class Model(ListedModel):
    x_megacontext: AboutModel


class Encoder(ListedModel):
    """Makes embeddings, and nothing else."""

    x_megacontext: AboutEncoder


class ModelList(Answer):
    object: Literal["list"] = "list"
    data: list[Model | Encoder]

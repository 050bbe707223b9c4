"""What the routes answer with, as OpenAPI describes it. Nothing else is in an answer."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from mc_core.focus.reasons import Reason

Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0, description="seconds")]


class Answer(BaseModel):
    """An object of an answer."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class ErrorDetail(Answer):
    """``param`` names the field at fault; ``code`` is for programs, ``message`` for people."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(Answer):
    """OpenAI's error object."""

    error: ErrorDetail


# -- completions ---------------------------------------------------------------------------------------------------


class CachedTokens(Answer):
    cached_tokens: Count


class UsageTokens(Answer):
    """The prompt is all the history that stood before the reply; of it, ``cached_tokens`` were not read again."""

    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count
    prompt_tokens_details: CachedTokens


class Context(Answer):
    """What the model saw of the history: tokens ``raw``, as gists, ``hidden``, and asked for but ``unavailable``; and
    of no history, ``framed``."""

    session_id: str | None
    tokens: Count
    raw: Count
    gisted: Count
    hidden: Count
    framed: Count
    unavailable: Count
    budget: Count
    cost: Count
    source: Literal["warm", "woken", "restored"]
    spans_fetched: Count
    kv_reused: Count
    kv_recomputed: Count
    refocuses: Count
    swap_rate: Annotated[float, Field(ge=0)]
    queue_seconds: Seconds
    prefill_seconds: Seconds


class TopLogprob(Answer):
    token: str
    bytes: list[Annotated[int, Field(ge=0, le=255)]]
    logprob: float


class ChatLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Answer):
    content: list[ChatLogprob]
    refusal: None


class ReplyMessage(Answer):
    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(Answer):
    index: Count
    message: ReplyMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(Answer):
    id: str
    object: Literal["chat.completion"]
    created: Count
    model: str
    choices: list[ChatChoice]
    usage: UsageTokens
    x_megacontext: Context


class DeltaMessage(Answer):
    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(Answer):
    index: Count
    delta: DeltaMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class ChatCompletionChunk(Answer):
    """One event of a stream. The last with a choice has ``x_megacontext``; ``usage`` comes alone, if asked for."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: Count
    model: str
    choices: list[ChunkChoice]
    usage: UsageTokens | None = None
    x_megacontext: Context | None = None


class TextLogprobs(Answer):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[Count]


class TextChoice(Answer):
    """``x_megacontext`` is here when there are several choices."""

    index: Count
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length"] | None
    x_megacontext: Context | None = None


class TextCompletion(Answer):
    """A whole answer, and each event of a stream, whose events lack ``usage`` but for the last, if it was asked for."""

    id: str
    object: Literal["text_completion"]
    created: Count
    model: str
    choices: list[TextChoice]
    usage: UsageTokens | None = None
    x_megacontext: Context | None = None


# -- models --------------------------------------------------------------------------------------------------------


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
    """

    notice: str | None
    family: str
    vocab_size: Count
    budget: Count
    block_size: Count
    lens: str
    allocator: str
    positions: str
    repair: str
    hidden_gists: bool
    networks: dict[str, str]
    sampling: Sampling


class Model(Answer):
    id: str
    object: Literal["model"] = "model"
    created: Count
    owned_by: str
    x_megacontext: AboutModel


class ModelList(Answer):
    object: Literal["list"] = "list"
    data: list[Model]


class Server(Answer):
    """What answers here, and where to read on."""

    object: Literal["server"] = "server"
    version: str
    model: str
    notice: str | None
    openapi: str


# -- sessions ------------------------------------------------------------------------------------------------------


class IngestProgress(Answer):
    """Tokens and bytes that an ingest has taken in, and the byte of the text from which it could go on for good;
    null where the history went on behind an ingest in parts."""

    active: bool
    tokens: Count
    bytes: Count
    offset: Count | None


class SessionObject(Answer):
    """A session. ``budget``, ``cost``, ``utilization`` and ``turns`` are told while it is in memory,
    ``ingest`` while one is under way.
    """

    id: str
    object: Literal["session"]
    model: str
    tokens: Count
    sequence: Count
    created: Count
    updated: Count
    metadata: dict[str, Any]
    implicit: bool
    budget: Count | None = None
    cost: Count | None = None
    utilization: float | None = None
    turns: Count | None = None
    ingest: IngestProgress | None = None


class SessionList(Answer):
    """``next`` is ``after`` of the next page."""

    object: Literal["list"]
    data: list[SessionObject]
    has_more: bool
    next: str | None


class DeletedSession(Answer):
    id: str
    object: Literal["session.deleted"] = "session.deleted"
    deleted: Literal[True] = True


class FocusEntry(Answer):
    """A gist of ``level`` that stands for tokens [start, end), or these tokens themselves (level 0): why they stand,
    and how many of them the model is shown."""

    level: Count
    start: Count
    end: Count
    cost: Count
    score: float
    residency: Count
    shown: Count
    reason: Reason | None


class Focus(Answer):
    """The working context: entries that tile the whole history."""

    tokens: Count
    budget: Count
    cost: Count
    utilization: float
    swap_rate: float
    framed: Count
    entries: list[FocusEntry]
    ingest: IngestProgress | None = None


class Ingested(Answer):
    """``offset`` is told of an ingest in parts: the byte of the text from which it may go on."""

    tokens_added: Count
    tokens: Count
    offset: Count | None = None


class Rewound(Answer):
    tokens: Count


# -- operations ----------------------------------------------------------------------------------------------------


class Health(Answer):
    status: Literal["ok", "dead"]


class Readiness(Answer):
    """``degraded``: the store is away, but sessions in memory go on."""

    status: Literal["ready", "degraded", "not ready"]
    reasons: list[str]

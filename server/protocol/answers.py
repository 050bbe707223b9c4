"""What several APIs answer with, as OpenAPI describes it. Nothing else is in an answer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1.000001)]
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


class CachedTokens(Answer):
    cached_tokens: Count


class UsageTokens(Answer):
    """The prompt is all the history that stood before the reply; of it, ``cached_tokens`` were not read again."""

    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count
    prompt_tokens_details: CachedTokens


class SourcePlace(Answer):
    """Tokens [start, end) of the history that stood raw, and the share of its attention that the reply paid them."""

    start: Count
    end: Count
    share: Share
    role: str | None
    message: list[Count] | None
    title: str | None
    text_start: str | None


class SourceRest(Answer):
    """The share of all else. With the places it makes 1."""

    turn: Share
    tail: Share
    sink: Share
    frames: Share
    gists: Share
    others: Share


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
    kv_loaded: Count
    kv_shared: Count
    kv_reused: Count
    kv_recomputed: Count
    guessed: Count
    guessed_right: Count
    refocuses: Count
    swap_rate: Annotated[float, Field(ge=0)]
    queue_seconds: Seconds
    prefill_seconds: Seconds
    sequence: Count | None
    sources: list[SourcePlace] | None = None
    rest: SourceRest | None = None

"""What chat and text completions share: sampling fields, usage, ids."""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, WithJsonSchema, field_validator, model_validator

from mc_core.engine.requests import ContextReport, Finished
from mc_core.models.sampler import SamplingParams
from server.protocol.parameters import CommonParameters, StreamParameters
from server.protocol.strict import WHOLE, Natural, Positive, StrictModel, wrong

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

MAX_STOPS = 16
MAX_STOP_CHARACTERS = 1_000
MAX_STOP_TOKENS = 64
MAX_BIASES = 1_024
TOKEN_KEY = "^(0|[1-9][0-9]{0,8})$"
Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]


TopK = Annotated[int, Field(ge=-1), WHOLE]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63), WHOLE]
TokenKey = Annotated[str, Field(pattern=TOKEN_KEY)]
Bias = Annotated[float, Field(ge=-100, le=100)]
LogitBias = Annotated[
    dict[TokenKey, Bias],
    Field(max_length=MAX_BIASES),
    WithJsonSchema(
        {
            "type": "object",
            "propertyNames": {"pattern": TOKEN_KEY},
            "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
            "maxProperties": MAX_BIASES,
        }
    ),
]


class StreamOptions(StreamParameters):
    include_usage: bool = False


class ContextWishes(StrictModel):
    """What a request wants to be told of its context."""

    sources: bool = False


class DrawingFields(StrictModel):
    """What every request for a turn may say of how its reply is drawn: OpenAI's parameters, plus top_k, min_p,
    repetition_penalty, stop_token_ids and ignore_eos."""

    model: str
    stream: bool = False
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: TopK | None = None
    min_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    logit_bias: LogitBias | None = None
    seed: Seed | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    stop_token_ids: Annotated[list[Natural], Field(max_length=MAX_STOP_TOKENS)] | None = None
    ignore_eos: bool = False
    session_id: str | None = Field(None, min_length=1, max_length=128)
    store: bool | None = None
    background: bool = False
    x_megacontext: ContextWishes | None = None

    @field_validator("top_k")
    @classmethod
    def _no_top_k(cls, value: int | None) -> int | None:
        return 0 if value == -1 else value

    @property
    def sources(self) -> bool:
        """Whether the answer is to tell what it stood on."""
        return self.x_megacontext is not None and self.x_megacontext.sources

    @property
    def biases(self) -> dict[int, float]:
        """By token id."""
        return {int(token): bias for token, bias in (self.logit_bias or {}).items()}

    def sampling(self, default: SamplingParams, logprobs: int | None) -> SamplingParams:
        """What the engine needs; a field that was not given keeps its default."""
        names = (
            "temperature",
            "top_p",
            "top_k",
            "min_p",
            "presence_penalty",
            "frequency_penalty",
            "repetition_penalty",
        )
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return dataclasses.replace(
            default,
            **given,
            logit_bias=self.biases,
            seed=self.seed,
            stop=tuple(stops),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            max_tokens=self.reply_limit or default.max_tokens,
            logprobs=logprobs,
            ignore_eos=self.ignore_eos,
        )

    @property
    def reply_limit(self) -> int | None:
        """Tokens of the reply at most."""
        raise NotImplementedError


class SamplingFields(DrawingFields, CommonParameters):
    """What chat and text completions take beside that."""

    stream_options: StreamOptions | None = None
    max_tokens: Positive | None = None

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> SamplingFields:
        if self.stream_options is not None and not self.stream:
            raise wrong("stream_options", "stream_options is only allowed when stream is true")
        return self

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def reply_limit(self) -> int | None:
        return self.max_tokens


def new_id(prefix: str) -> str:
    return f"{prefix}-{secrets.token_hex(12)}"


def now() -> int:
    return int(time.time())


def usage(finished: Iterable[Finished]) -> dict[str, Any]:
    """OpenAI's usage object, of all turns: the prompt is all the history that stood before the reply."""
    counts = [one.usage for one in finished]
    cached = sum(one.cached_tokens for one in counts)
    prompt = cached + sum(one.prompt_tokens for one in counts)
    completion = sum(one.completion_tokens for one in counts)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def context(report: ContextReport, session_id: str | None) -> dict[str, Any]:
    """``x_megacontext``: what the model saw of the history, and what the reply stood on if that was asked for."""
    told: dict[str, Any] = {"session_id": session_id, **_rounded(report)}
    stood_on = told.pop("provenance")
    return told if stood_on is None else told | stood_on


def _rounded(of: DataclassInstance) -> dict[str, Any]:
    """The fields of a dataclass as JSON has them."""

    def plain(value: Any) -> Any:
        if isinstance(value, float):
            return round(value, 6)
        if isinstance(value, tuple):
            return [plain(one) for one in value]
        return _rounded(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value

    return {field.name: plain(getattr(of, field.name)) for field in dataclasses.fields(of)}

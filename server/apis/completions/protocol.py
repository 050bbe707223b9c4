"""Bodies of /v1/completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from mc_core.models.sampler import SamplingParams
from server.protocol.answers import Answer, Context, Count, UsageTokens
from server.protocol.common import SamplingFields
from server.protocol.parameters import TextParameters
from server.protocol.strict import WHOLE, Natural

Text = Annotated[str, Field(min_length=1)]
TokenIds = Annotated[list[Natural], Field(min_length=1)]

Texts = Annotated[list[Text], Field(min_length=1)]
TokenLists = Annotated[list[TokenIds], Field(min_length=1)]


class CompletionRequest(SamplingFields, TextParameters):
    """``prompt`` is text or token ids, or a list of either: then each of them has a choice of its own."""

    prompt: (
        Text | TokenIds | Annotated[list[Text], Field(min_length=1)] | Annotated[list[TokenIds], Field(min_length=1)]
    )
    logprobs: Annotated[int, Field(ge=0, le=5), WHOLE] | None = None

    @property
    def prompts(self) -> Sequence[str | Sequence[int]]:
        """The prompts one by one."""
        if isinstance(self.prompt, str) or isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt

    def params(self, default: SamplingParams) -> SamplingParams:
        return self.sampling(default, self.logprobs)


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

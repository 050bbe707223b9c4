"""OpenAI's parameters that this server has no use for: which of them pass, and with which values.

A request that asks for what would not change the answer is served; one that asks for what the server cannot do is
refused by name. What is honoured is in the requests themselves.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from server.protocol.strict import Only, StrictModel

Harmless = Annotated[Any, Field(description="Accepted; does not change the answer.")]
"""Says who asks, how it is billed or cached, or how it might go faster: any value passes."""


class CommonParameters(StrictModel):
    user: Harmless = None
    n: Annotated[Any, Only(1)] = None


class ChatParameters(CommonParameters):
    """Of /v1/chat/completions. Only(...) lists the values that ask for nothing."""

    cache_control: Harmless = None
    metadata: Harmless = None
    prediction: Harmless = None
    prompt_cache_key: Harmless = None
    prompt_cache_options: Harmless = None
    prompt_cache_retention: Harmless = None
    safety_identifier: Harmless = None
    service_tier: Harmless = None

    audio: Annotated[Any, Only()] = None
    function_call: Annotated[Any, Only("none", "auto")] = None
    functions: Annotated[Any, Only([])] = None
    modalities: Annotated[Any, Only(["text"])] = None
    moderation: Annotated[Any, Only()] = None
    reasoning_effort: Annotated[Any, Only("none")] = None
    verbosity: Annotated[Any, Only("medium")] = None
    web_search_options: Annotated[Any, Only()] = None


class TextParameters(CommonParameters):
    """Of /v1/completions."""

    best_of: Annotated[Any, Only(1)] = None
    echo: Annotated[Any, Only(False)] = None
    suffix: Annotated[Any, Only()] = None


class StreamParameters(StrictModel):
    """Of ``stream_options``."""

    include_obfuscation: Annotated[Any, Only(False)] = None


class PartParameters(StrictModel):
    """Of a part of a message's content."""

    cache_control: Harmless = None
    prompt_cache_breakpoint: Harmless = None


class MessageParameters(StrictModel):
    """Of a message. Replies of ours carry some of them, and come back as they were sent."""

    cache_control: Harmless = None
    annotations: Harmless = None
    audio: Annotated[Any, Only()] = None
    function_call: Annotated[Any, Only()] = None
    refusal: Annotated[Any, Only()] = None

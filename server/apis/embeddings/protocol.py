"""Bodies of /v1/embeddings."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from server.protocol.answers import Answer, Count
from server.protocol.parameters import Harmless
from server.protocol.strict import Positive, StrictModel

MAX_TEXTS = 2_048
Text = Annotated[str, Field(min_length=1)]


class EmbeddingRequest(StrictModel):
    """``dimensions``: all that the encoder has, for they can't be cut."""

    input: Text | Annotated[list[Text], Field(min_length=1, max_length=MAX_TEXTS)]
    model: str
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Positive | None = None
    user: Harmless = None

    @field_validator("input", mode="before")
    @classmethod
    def _no_ids(cls, value: Any) -> Any:
        if isinstance(value, list) and value and isinstance(value[0], int | list):
            raise PydanticCustomError(
                "token_ids", "token ids are of a tokenizer that this server does not know: send the text itself"
            )
        return value

    @property
    def texts(self) -> list[str]:
        return [self.input] if isinstance(self.input, str) else self.input


class Embedding(Answer):
    """``embedding``: a vector of unit length, as numbers or as the base64 of their float32, lowest byte first."""

    object: Literal["embedding"]
    index: Count
    embedding: list[float] | str


class EmbeddingUsage(Answer):
    prompt_tokens: Count
    total_tokens: Count


class EmbeddingList(Answer):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage

"""Bodies of /v1/sessions/{id}/focus and .../text."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from mc_core.focus.reasons import Reason
from server.apis.sessions.protocol import IngestProgress
from server.protocol.answers import Answer, Count
from server.protocol.strict import Natural, StrictModel

MAX_RANGES = 1_000
MAX_TEXT_TOKENS = 8_192


def _some_tokens(value: list[int]) -> list[int]:
    if value[0] >= value[1]:
        raise ValueError(f"a range is [start, end] with start below end, got {value}")
    return value


TokenRange = Annotated[list[Natural], Field(min_length=2, max_length=2), AfterValidator(_some_tokens)]
Ranges = Annotated[list[TokenRange], Field(max_length=MAX_RANGES)]
Bounds = Annotated[list[Count], Field(min_length=2, max_length=2)]


class Pins(StrictModel):
    """What to let go, and then what to keep in full view, in tokens."""

    pin: Ranges = Field(default_factory=list)
    unpin: Ranges = Field(default_factory=list)


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


class Vectors(Answer):
    """Of how many of the history's whole blocks the gists and lens keys are ``made``."""

    blocks: Count
    made: Count


class Focus(Answer):
    """The working context: entries that tile the whole history; tokens of it that are read right before the question
    and not where they stand; and the ranges that were pinned."""

    tokens: Count
    budget: Count
    cost: Count
    utilization: float
    swap_rate: float
    framed: Count
    read_last: Bounds | None
    pins: list[Bounds]
    pin_room: Count
    vectors: Vectors
    entries: list[FocusEntry]
    ingest: IngestProgress | None = None


class FocusStrip(Answer):
    """The working context in few runs, and what has changed since the strip before: an event ``strip``.

    runs: [start, end, level, state], state a place in ``states``. opened: [start, end, reason, score]; closed: [start,
    end].
    """

    moment: Literal["now", "turn", "interval", "commit", "ingest", "rollback"]
    tokens: Count
    budget: Count
    cost: Count
    utilization: float
    swap_rate: float
    framed: Count
    pin_room: Count
    tokens_per_second: float | None
    states: list[str]
    runs: list[Annotated[list[Count], Field(min_length=4, max_length=4)]]
    opened: list[tuple[Count, Count, str, float]]
    closed: list[Bounds]


class FocusEnd(Answer):
    """Why there are no more strips: an event ``end``."""

    reason: Literal["deleted", "draining"]


class HistoryText(Answer):
    """The text of tokens [start, end). A character belongs to the part that holds its first byte."""

    start: Count
    end: Count
    text: str

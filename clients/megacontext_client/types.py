"""What the server answers, typed. ``raw`` is the whole answer, with fields that are newer than this client."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self

JSON = dict[str, Any]


@dataclass(frozen=True)
class Session:
    """A stored conversation: ``tokens`` of history, of which at most ``budget`` cost is in view.

    sequence: counts what was stored of it. keep: it never expires. ttl: seconds without use after which it may go,
    None: as the server says. expires: when it may if nothing is stored until then (seconds since 1970), None: never.
    """

    id: str
    tokens: int
    budget: int
    cost: int
    utilization: float
    raw: JSON = field(repr=False, compare=False)
    sequence: int = 0
    keep: bool = False
    ttl: float | None = None
    expires: int | None = None

    @classmethod
    def parse(cls, body: JSON) -> Self:
        return cls(
            id=str(body["id"]),
            tokens=int(body.get("tokens") or 0),
            budget=int(body.get("budget") or 0),
            cost=int(body.get("cost") or 0),
            utilization=float(body.get("utilization") or 0.0),
            raw=body,
            sequence=int(body.get("sequence") or 0),
            keep=bool(body.get("keep")),
            ttl=None if body.get("ttl") is None else float(body["ttl"]),
            expires=None if body.get("expires") is None else int(body["expires"]),
        )

    @property
    def metadata(self) -> JSON:
        return dict(self.raw.get("metadata") or {})


@dataclass(frozen=True)
class SessionPage:
    """One page of the list of sessions; ``next`` is the cursor of the page after it, None on the last one."""

    data: list[Session]
    next: str | None

    @classmethod
    def parse(cls, body: JSON) -> Self:
        return cls([Session.parse(row) for row in body["data"]], body.get("next"))


@dataclass(frozen=True)
class SessionMessage:
    """A message of a session, or an ingested text (``document``), at tokens [start, end) of the history.

    content: None for a document, and for a very long message.
    """

    id: str
    role: str
    content: str | None
    start: int
    end: int
    raw: JSON = field(repr=False, compare=False)

    @classmethod
    def parse(cls, body: JSON) -> Self:
        return cls(
            str(body["id"]), str(body["role"]), body.get("content"), int(body["start"]), int(body["end"]), raw=body
        )


@dataclass(frozen=True)
class MessagePage:
    """One page of a session's messages; ``next`` as of a page of sessions. complete: they tell all of the history."""

    data: list[SessionMessage]
    next: str | None
    complete: bool

    @classmethod
    def parse(cls, body: JSON) -> Self:
        rows = [SessionMessage.parse(row) for row in body["data"]]
        return cls(rows, body.get("next"), bool(body.get("complete")))


@dataclass(frozen=True)
class Ingested:
    """How many tokens a document became, and how many the history has now."""

    tokens_added: int
    tokens: int

    @classmethod
    def parse(cls, body: JSON) -> Self:
        return cls(int(body["tokens_added"]), int(body["tokens"]))


@dataclass(frozen=True)
class FocusEntry:
    """One entry of the working context: tokens [start, end) at a level (0: raw; above: one gist).

    shown: how many of its tokens the model reads; reason: why it stands raw. None where the server does not tell.
    """

    level: int
    start: int
    end: int
    cost: int
    score: float | None
    residency: int | None
    shown: int | None = None
    reason: str | None = None

    @classmethod
    def parse(cls, body: JSON) -> Self:
        score, residency, shown = body.get("score"), body.get("residency"), body.get("shown")
        return cls(
            level=int(body["level"]),
            start=int(body["start"]),
            end=int(body["end"]),
            cost=int(body["cost"]),
            score=None if score is None else float(score),
            residency=None if residency is None else int(residency),
            shown=None if shown is None else int(shown),
            reason=body.get("reason"),
        )


@dataclass(frozen=True)
class Focus:
    """The working context: entries in order that tile [0, tokens)."""

    tokens: int
    budget: int
    cost: int
    utilization: float
    swap_rate: float
    entries: list[FocusEntry]
    raw: JSON = field(repr=False, compare=False)

    @classmethod
    def parse(cls, body: JSON) -> Self:
        return cls(
            tokens=int(body["tokens"]),
            budget=int(body["budget"]),
            cost=int(body["cost"]),
            utilization=float(body["utilization"]),
            swap_rate=float(body.get("swap_rate") or 0.0),
            entries=[FocusEntry.parse(entry) for entry in body["entries"]],
            raw=body,
        )

    @property
    def raw_tokens(self) -> int:
        """Tokens of history that the model reads word by word."""
        raw = (entry for entry in self.entries if entry.level == 0)
        return sum(entry.end - entry.start if entry.shown is None else entry.shown for entry in raw)


@dataclass(frozen=True)
class Model:
    """A model that the server serves."""

    id: str
    raw: JSON = field(repr=False, compare=False)

    @classmethod
    def parse(cls, body: JSON) -> Self:
        return cls(str(body["id"]), body)


@dataclass(frozen=True)
class Usage:
    """Tokens of one request, as OpenAI counts them: of the prompt, ``cached_tokens`` stood in the history already."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int = 0

    @classmethod
    def parse(cls, body: JSON) -> Self:
        prompt, completion = int(body.get("prompt_tokens") or 0), int(body.get("completion_tokens") or 0)
        cached = int((body.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
        return cls(prompt, completion, int(body.get("total_tokens") or prompt + completion), cached)


@dataclass(frozen=True)
class Delta:
    """What one chunk of a stream adds; ``finish_reason`` is set on the last one."""

    content: str
    finish_reason: str | None = None
    logprobs: JSON | None = None


@dataclass(frozen=True)
class ChatResult:
    """A whole reply. ``x_megacontext`` tells what the model had in view: raw, gisted, unavailable tokens, ..."""

    id: str
    model: str
    content: str
    finish_reason: str | None
    usage: Usage | None
    x_megacontext: JSON
    session_id: str | None

    @classmethod
    def parse(cls, body: JSON, session_id: str | None = None) -> Self:
        choice = body["choices"][0]
        extra = body.get("x_megacontext") or {}
        return cls(
            id=str(body.get("id", "")),
            model=str(body.get("model", "")),
            content=choice["message"].get("content") or "",
            finish_reason=choice.get("finish_reason"),
            usage=Usage.parse(body["usage"]) if body.get("usage") else None,
            x_megacontext=extra,
            session_id=extra.get("session_id") or session_id,
        )

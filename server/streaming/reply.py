"""A reply as its pieces make it."""

from __future__ import annotations

from dataclasses import dataclass, field

from mc_core.engine.requests import TokenLogprob
from server.streaming.pieces import CallArguments, CallStart, Piece, TextPiece


@dataclass
class Call:
    """A call of a tool; arguments: JSON text."""

    id: str
    name: str
    fragments: list[str] = field(default_factory=list)

    @property
    def arguments(self) -> str:
        return "".join(self.fragments)


@dataclass
class Reply:
    """All that was generated of one choice so far."""

    texts: list[str] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)

    def add(self, piece: Piece, logprobs: tuple[TokenLogprob, ...] = ()) -> None:
        self.logprobs.extend(logprobs)
        match piece:
            case TextPiece(text):
                self.texts.append(text)
            case CallStart(_, id, name):
                self.calls.append(Call(id, name))
            case CallArguments(index, fragment):
                self.calls[index].fragments.append(fragment)

    @property
    def text(self) -> str:
        return "".join(self.texts)

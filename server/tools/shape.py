"""The form that a request gives to its reply: which tools it may call, and what grammar it keeps to."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

from mc_core.models.constraint import Constraint
from server.streaming.pieces import CallArguments, CallStart, Piece, PieceReader, PlainReader, TextPiece
from server.tools.reader import CallReader
from server.tools.syntax import CallSyntax
from server.tools.tool import ToolCall, ToolUse


@dataclass(frozen=True)
class Shape:
    """Of one turn. use: what the model is told of tools. syntax: how it writes calls. constraint: of this turn alone.

    spoken_ids: special tokens that the reader must see by their names. tags: what else may open a call.
    """

    use: ToolUse | None = None
    syntax: CallSyntax | None = None
    constraint: Constraint | None = None
    spoken_ids: frozenset[int] = frozenset()
    tags: tuple[str, ...] = ()
    key: str = field(default_factory=lambda: secrets.token_hex(8))

    def reader(self) -> PieceReader:
        """A reader for the turn's reply. All readers of a shape give the same ids to the same calls."""
        if self.use is None or self.syntax is None or not self.use.callable:
            return PlainReader()
        names = [tool.name for tool in self.use.callable]
        return CallReader(self.syntax, names, self._call_id, self.tags, demanded=self.use.demanded)

    def _call_id(self, index: int) -> str:
        return f"call_{self.key}{index:02}"

    def parts(self, reply: str, *, cut: bool = False) -> tuple[str, tuple[ToolCall, ...]]:
        """The text and the calls of a whole reply, or of one that was cut, as its reader tells them."""
        reader = self.reader()
        return joined([*reader.feed(reply), *reader.end(cut=cut)])


PLAIN = Shape()
"""Words, whatever they are."""


def joined(pieces: list[Piece]) -> tuple[str, tuple[ToolCall, ...]]:
    texts: list[str] = []
    calls: list[tuple[str, str, list[str]]] = []
    for piece in pieces:
        match piece:
            case TextPiece(text):
                texts.append(text)
            case CallStart(_, call_id, name):
                calls.append((call_id, name, []))
            case CallArguments(index, fragment):
                calls[index][2].append(fragment)
    return "".join(texts), tuple(ToolCall(call_id, name, "".join(parts)) for call_id, name, parts in calls)

"""Where a JSON object ends, while its text still comes."""

from __future__ import annotations

import re
from enum import Enum

_BETWEEN = re.compile(r"[\s:,0-9eE.+\-truefalsn]*")
_INSIDE = re.compile(r'[^"\\]*')


class State(Enum):
    OPEN = "open"
    CLOSED = "closed"
    BROKEN = "broken"


class ObjectScan:
    """Walks through the text of one object, from its first brace on, or from inside it at ``depth``.

    It knows brackets, strings and what may stand between them; whether all is in its place, a parser must say.
    """

    def __init__(self, depth: int = 0) -> None:
        self.state = State.OPEN
        self._depth, self._in_string, self._escaped = depth, False, False

    def walk(self, text: str, at: int = 0) -> int:
        """How far one gets in further text: behind its last bracket, in front of what is no JSON, or to its end."""
        while at < len(text) and self.state is State.OPEN:
            at = self._string(text, at) if self._in_string else self._structure(text, at)
        return at

    def _string(self, text: str, at: int) -> int:
        if self._escaped:
            self._escaped = False
            return at + 1
        found = _INSIDE.match(text, at)
        assert found is not None
        at = found.end()
        if at == len(text):
            return at
        self._escaped, self._in_string = text[at] == "\\", text[at] != '"'
        return at + 1

    def _structure(self, text: str, at: int) -> int:
        found = _BETWEEN.match(text, at)
        assert found is not None
        at = found.end()
        if at == len(text):
            return at
        match text[at]:
            case "{" | "[":
                self._depth += 1
            case "}" | "]":
                self._depth -= 1
                if self._depth == 0:
                    self.state = State.CLOSED
            case '"':
                self._in_string = True
            case _:
                self.state = State.BROKEN
                return at
        return at + 1

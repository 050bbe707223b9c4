"""Token by token to text: characters come out whole, and what may become a stop string waits."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from mc_core.models.tokenizer import Tokenizer

MAX_HELD = 8
"""Tokens that may wait for the rest of a character where token bytes are unknown; a character has 4 bytes at most."""


class Detokenizer:
    """Incremental decoding of one reply; special tokens are left out. The parts add up to the decoded whole."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._stream = _ByteStream(tokenizer) if tokenizer.pieces.known else _WindowStream(tokenizer)
        self._skip = tokenizer.special_ids

    def push(self, token: int) -> str:
        """The text that is certain with this token; empty while a character is open."""
        return "" if token in self._skip else self._stream.push(token)

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that never became whole."""
        return self._stream.flush()


class _ByteStream:
    """For tokens that stand for bytes: constant work a token, however broken the bytes are."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._pieces = tokenizer.pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._at_start = tokenizer.pieces.strips_first_space

    def push(self, token: int) -> str:
        return self._from_start(self._decoder.decode(self._pieces.of(token) or b""))

    def flush(self) -> str:
        return self._from_start(self._decoder.decode(b"", final=True))

    def _from_start(self, text: str) -> str:
        if self._at_start and text:
            self._at_start = False
            return text.removeprefix(" ")
        return text


class _WindowStream:
    """For any other tokenizer: decode the open tokens after those before them, and see what came."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._before: list[int] = []
        self._open: list[int] = []

    def push(self, token: int) -> str:
        self._open.append(token)
        text = self._text()
        if not text or (text.endswith("\ufffd") and len(self._open) < MAX_HELD):
            return ""
        self._before, self._open = self._open, []
        return text

    def flush(self) -> str:
        text, self._open = self._text(), []
        return text

    def _text(self) -> str:
        before = self._tokenizer.decode(self._before)
        return self._tokenizer.decode(self._before + self._open)[len(before) :]


class StopMatcher:
    """Finds the first stop string in text that comes in parts, however it is cut.

    The first is the one that is complete first; of those complete at once, the one that began first.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self._done = False

    def push(self, text: str) -> tuple[str, bool]:
        """(text that can be shown now, whether a stop string was met). Nothing of or after a stop is ever shown."""
        if self._done:
            return "", True
        buffer = self._held + text
        found = [(at + len(stop), at) for stop in self._stops if (at := buffer.find(stop)) >= 0]
        if found:
            self._done, self._held = True, ""
            return buffer[: min(found)[1]], True
        keep = max((_overlap(buffer, stop) for stop in self._stops), default=0)
        cut = len(buffer) - keep
        self._held = buffer[cut:]
        return buffer[:cut], False

    def flush(self) -> str:
        """What was held back and did not become a stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest proper beginning of ``stop`` that ``text`` ends with."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0

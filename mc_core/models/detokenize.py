"""Token by token to text: characters come out whole, and what may become a stop string waits."""

from __future__ import annotations

import codecs
import itertools
from collections.abc import Sequence

from mc_core.models.tokenizer import Tokenizer

MAX_HELD = 8
"""Tokens that may wait for the rest of a character where token bytes are unknown; a character has 4 bytes at most."""


class Detokenizer:
    """Incremental decoding of one reply, without special tokens; those that are ``spoken`` come by their names.

    The parts add up to the decoded whole.
    """

    def __init__(self, tokenizer: Tokenizer, spoken: frozenset[int] = frozenset()) -> None:
        self._stream = _ByteStream(tokenizer) if tokenizer.pieces.known else _WindowStream(tokenizer)
        self._skip = tokenizer.special_ids - spoken
        self._names = {token: tokenizer.token_bytes(token).decode("utf-8", "replace") for token in spoken}

    def push(self, token: int) -> str:
        """The text that is certain with this token; empty while a character is open."""
        if token in self._names:
            return self._stream.flush() + self._names[token]
        return "" if token in self._skip else self._stream.push(token)

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that never became whole."""
        return self._stream.flush()

    @property
    def open(self) -> bool:
        """A character waits for the rest of its tokens."""
        return self._stream.open


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

    @property
    def open(self) -> bool:
        return bool(self._decoder.getstate()[0])

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

    @property
    def open(self) -> bool:
        return bool(self._open)

    def _text(self) -> str:
        before = self._tokenizer.decode(self._before)
        return self._tokenizer.decode(self._before + self._open)[len(before) :]


class StopMatcher:
    """Finds the first stop string in text that comes in parts, however it is cut.

    The first is the one that is complete first; of those complete at once, the one that began first. Hidden parts (the
    names of special tokens) can belong to a stop string, but are never shown. length: of all parts so far, hidden ones
    too. cut: where in them the stop string began, None before one is met; both only count where there are stop strings.
    met: which of them it was.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self._shown = b""  # of each held character: 1, or 0 if it is hidden
        self.length = 0
        self.cut: int | None = None
        self.met: str | None = None

    def push(self, text: str, hidden: bool = False) -> tuple[str, bool]:
        """(text that can be shown now, whether a stop string was met). Nothing of or after a stop is ever shown."""
        if self.cut is not None:
            return "", True
        if not self._stops:
            return "" if hidden else text, False
        self.length += len(text)
        self._held += text
        self._shown += (b"\0" if hidden else b"\1") * len(text)
        found = [(at + len(stop), at) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            end, at = min(found)
            self.met = self._held[at:end]
            self.cut = self.length - len(self._held) + at
            shown, self._held = self._release(at), ""
            return shown, True
        keep = max(_overlap(self._held, stop) for stop in self._stops)
        return self._release(len(self._held) - keep), False

    def flush(self) -> str:
        """What was held back and did not become a stop string."""
        return self._release(len(self._held))

    def _release(self, count: int) -> str:
        """The first characters that are held, without hidden ones."""
        text, shown = self._held[:count], self._shown[:count]
        self._held, self._shown = self._held[count:], self._shown[count:]
        return "".join(itertools.compress(text, shown))


def _overlap(text: str, stop: str) -> int:
    """Length of the longest proper beginning of ``stop`` that ``text`` ends with."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0

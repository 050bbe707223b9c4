"""Cuts a stream of text into pieces of a size that suits a tokenizer, without tearing words apart."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

PIECE = 1 << 16
"""Characters that are tokenized as one text."""
BATCH = 16
"""Pieces in one call of the tokenizer, which spreads them over the cores."""


async def batches(texts: AsyncIterator[str], piece: int = PIECE, batch: int = BATCH) -> AsyncIterator[list[str]]:
    """Lists of at most ``batch`` pieces of at most ``piece`` characters; put together, they are the texts."""
    ready: list[str] = []
    waiting: list[str] = []
    length = 0
    async for text in texts:
        waiting.append(text)
        length += len(text)
        if length < piece:
            continue
        *cut, rest = pieces("".join(waiting), piece)
        waiting, length = [rest], len(rest)
        for one in cut:
            ready.append(one)
            if len(ready) == batch:
                yield ready
                ready = []
    ready += [one for one in pieces("".join(waiting), piece) if one]
    if ready:
        yield ready


def pieces(text: str, piece: int = PIECE) -> Iterator[str]:
    """The text in pieces, each cut before a line break, else before a blank, else at its full length."""
    start = 0
    while len(text) - start >= piece:
        end = _cut(text, start, piece)
        yield text[start:end]
        start = end
    yield text[start:]


def _cut(text: str, start: int, piece: int) -> int:
    for mark in ("\n", " "):
        at = text.rfind(mark, start + piece // 2, start + piece)
        if at > start:
            return at
    return start + piece

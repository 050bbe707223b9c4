"""Documents as chunked request bodies: text, files and iterables of any size, never whole in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from os import PathLike
from typing import BinaryIO, cast

CHUNK_BYTES = 1 << 16

Progress = Callable[[int], object]
"""Called with the bytes handed to the connection so far."""
Source = str | bytes | PathLike[str] | BinaryIO | Iterable[str | bytes]
"""UTF-8 text itself, the path of a file, an open binary file, or pieces of text. A ``str`` is text, never a path."""
AsyncSource = Source | AsyncIterable[str | bytes]


def rereadable(source: AsyncSource) -> bool:
    """Whether a source can be sent a second time, should the first one break off."""
    return isinstance(source, str | bytes | PathLike)


def pieces(source: Source, progress: Progress | None = None) -> Iterator[bytes]:
    """The UTF-8 bytes of ``source``, in order; raises OSError when a file cannot be read."""
    sent = 0
    for piece in _read(source):
        if not piece:
            continue
        yield piece
        sent += len(piece)
        if progress is not None:
            progress(sent)


async def async_pieces(source: AsyncSource, progress: Progress | None = None) -> AsyncIterator[bytes]:
    """As ``pieces``; what blocks is read in a thread."""
    if isinstance(source, AsyncIterable):
        sent = 0
        async for item in source:
            for piece in _read(item):
                yield piece
                sent += len(piece)
                if progress is not None:
                    progress(sent)
        return
    blocking = pieces(source, progress)
    while (piece := await asyncio.to_thread(next, blocking, b"")) != b"":
        yield piece


def _read(source: Source) -> Iterator[bytes]:
    if isinstance(source, str):
        for start in range(0, len(source), CHUNK_BYTES):
            yield source[start : start + CHUNK_BYTES].encode()
    elif isinstance(source, bytes):
        for start in range(0, len(source), CHUNK_BYTES):
            yield source[start : start + CHUNK_BYTES]
    elif isinstance(source, PathLike):
        with open(source, "rb") as file:
            yield from _read_file(file)
    elif hasattr(source, "read"):
        yield from _read_file(cast(BinaryIO, source))
    else:
        for item in source:
            yield from _read(item)


def _read_file(file: BinaryIO) -> Iterator[bytes]:
    while piece := file.read(CHUNK_BYTES):
        yield piece

"""The sentence encoder of a server, on a thread of its own: requests take turns there, batch by batch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mc_core.errors import ConfigError, QueueFullError
from mc_core.models.sentence_encoder import SentenceEncoder, packaged
from mc_core.models.threads import aside
from server.errors import bad_request
from server.settings import Settings

MAX_CHARACTERS = 4_000_000
"""Of all texts of a request together."""
MAX_TOKENS = 300_000
"""Likewise."""
BATCH_TOKENS = 4_096
"""Read at once, padding included: what another request waits for at most, a second or two on one core."""
MINILM = "minilm"
"""What all-MiniLM-L6-v2 in its package is called in settings."""
T = TypeVar("T")


@dataclass(frozen=True)
class Embedded:
    """vectors: [n, size] float32, of unit length. tokens: that were read."""

    vectors: NDArray[np.float32]
    tokens: int


class Embedder:
    """``name``: what requests call the encoder."""

    def __init__(self, name: str, encoder: SentenceEncoder, max_requests: int) -> None:
        self.name, self.encoder, self._max_requests = name, encoder, max_requests
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="embedder")
        self._requests = 0

    @classmethod
    def of(cls, settings: Settings, device: str, taken: Sequence[str]) -> Embedder | None:
        """The encoder of the settings; None without one. ConfigError if it can't be used. taken: names of the model."""
        if settings.encoder is None:
            return None
        folder = packaged() if settings.encoder == MINILM else Path(settings.encoder)
        own = "all-MiniLM-L6-v2" if settings.encoder == MINILM else folder.resolve().name
        name = settings.encoder_name or own
        if name in taken:
            raise ConfigError(f"encoder_name: the model is called {name!r} already")
        return cls(name, SentenceEncoder.load(folder, device), settings.max_queue + 1)

    async def embed(self, texts: Sequence[str]) -> Embedded:
        """ApiError 400 for texts that are too long; QueueFullError while as many requests are read as may be."""
        if sum(map(len, texts)) > MAX_CHARACTERS:
            raise bad_request(f"input may have {MAX_CHARACTERS:,} characters at most", "input")
        if self._requests >= self._max_requests:
            raise QueueFullError(f"{self._requests} requests for embeddings are waiting")
        self._requests += 1
        try:
            ids = await self.aside(lambda: self.encoder.tokens(texts))
            self._check(ids)
            vectors = np.empty((len(ids), self.encoder.size), np.float32)
            for rows in batches([len(one) for one in ids]):
                batch = [ids[row] for row in rows]
                vectors[rows] = await self.aside(lambda batch=batch: self.encoder.encode_tokens(batch).numpy())  # type: ignore[misc]
            return Embedded(vectors, sum(map(len, ids)))
        finally:
            self._requests -= 1

    async def aside(self, work: Callable[[], T]) -> T:
        """Run on the encoder's thread, behind what other requests wait for there."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, aside, work)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _check(self, ids: Sequence[Sequence[Any]]) -> None:
        most = self.encoder.max_tokens
        for place, one in enumerate(ids):
            if len(one) > most:
                what = f"input.{place}" if len(ids) > 1 else "input"
                raise bad_request(f"{what} has {len(one):,} tokens, but {self.name} reads {most:,} at most", what)
        total = sum(map(len, ids))
        if total > MAX_TOKENS:
            raise bad_request(f"input has {total:,} tokens, but a request may have {MAX_TOKENS:,} at most", "input")


def batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Rows of like length, as many together as ``BATCH_TOKENS`` allows."""
    rows: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        if rows and (len(rows) + 1) * lengths[row] > BATCH_TOKENS:
            yield rows
            rows = []
        rows.append(row)
    if rows:
        yield rows

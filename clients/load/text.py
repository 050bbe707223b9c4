"""Prompts of made-up words, so long as the server's own tokenizer counts them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from clients.megacontext_client import AsyncMegaContext, ClientError

_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"
VOCABULARY = 1024
SHORT, LONG = 16, 144
"""Words of the two prompts that the calibration compares."""
CALIBRATION_TURNS = 2
PIECE = 4096
"""Words of a document that are in memory at a time."""


def vocabulary(seed: int) -> list[str]:
    """Distinct words of two syllables and a consonant, the same for the same seed."""
    rng = random.Random(f"words {seed}")
    words: dict[str, None] = {}
    while len(words) < VOCABULARY:
        syllables = (rng.choice(_CONSONANTS) + rng.choice(_VOWELS) for _ in range(2))
        words["".join(syllables) + rng.choice(_CONSONANTS)] = None
    return list(words)


@dataclass(frozen=True)
class Calibration:
    """A message of n words costs about ``overhead`` + n * ``per_word`` tokens; the overhead is the chat template's.

    spent: prompt tokens that the server read to find out.
    """

    per_word: float
    overhead: float
    spent: int = 0


class Words:
    """Writes texts of a wanted length in tokens; a text depends on the seed, its key and its length alone."""

    def __init__(self, seed: int, calibration: Calibration) -> None:
        self._seed, self._words, self.calibration = seed, vocabulary(seed), calibration

    def text(self, key: str, words: int) -> str:
        rng = random.Random(f"text {self._seed} {key}")
        return " ".join(rng.choices(self._words, k=words))

    def message(self, key: str, tokens: int) -> str:
        """A chat message that costs ``tokens`` with its template, as nearly as whole words allow; at least one."""
        return self.text(key, max(1, round((tokens - self.calibration.overhead) / self.calibration.per_word)))

    def document(self, key: str, tokens: int) -> Iterator[str]:
        """A text to ingest, which has no template around it; in pieces, since it may be of any size."""
        words = max(1, round(tokens / self.calibration.per_word))
        for start in range(0, words, PIECE):
            piece = self.text(f"{key} {start}", min(PIECE, words - start))
            yield piece if start == 0 else f" {piece}"


async def calibrate(server: AsyncMegaContext, seed: int, model: str) -> Calibration:
    """Two prompts in a session each, deleted afterwards. ClientError if the server refuses or reports no usage."""
    words = Words(seed, Calibration(1.0, 0.0))
    short, long = [await _count(server, words.text("calibration", n), model) for n in (SHORT, LONG)]
    per_word = (long - short) / (LONG - SHORT)
    if per_word <= 0:
        raise ClientError("the server's usage does not grow with the prompt: lengths can't be calibrated")
    return Calibration(per_word, short - SHORT * per_word, short + long)


async def _count(server: AsyncMegaContext, text: str, model: str) -> int:
    session = await server.create_session()
    try:
        reply = await server.chat(session.id, text, model=model, max_tokens=1)
    finally:
        await server.delete(session.id)
    if reply.usage is None:
        raise ClientError("the server reports no usage: lengths can't be calibrated")
    return reply.usage.prompt_tokens

"""Cuts a stream of text into pieces of a size that suits a tokenizer, where that changes none of its tokens."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mc_core.models.tokenizer import Ids, Tokenizer

PIECE = 1 << 16
"""Characters that are tokenized as one text."""
BATCH = 16
"""Pieces in one call of the tokenizer, which spreads them over the cores."""
LEAD = 128
"""Characters before a cut behind which the next piece is tokenized, and characters behind it that are tried with it."""
TRIES = 32
"""Places of each kind that are tried for a cut."""


@dataclass(frozen=True)
class Piece:
    """A piece of a text, and the end of what stands before it, "" for the first."""

    text: str
    lead: str


async def batches(
    texts: AsyncIterator[str], tokenizer: Tokenizer, piece: int = PIECE, batch: int = BATCH
) -> AsyncIterator[list[Piece]]:
    """Lists of at most ``batch`` pieces; put together, they are the texts.

    A piece has at most ``piece`` characters, but for a text that has no place to cut: that one grows up to ``batch``
    times as long, and is cut as it comes then.
    """
    ready: list[Piece] = []
    waiting: list[str] = []
    length, lead, enough = 0, "", piece + LEAD
    async for text in texts:
        waiting.append(text)
        length += len(text)
        if length < enough:
            continue
        whole, start = "".join([lead, *waiting]), len(lead)
        for end in _cuts(whole, start, tokenizer, piece, batch):
            ready.append(Piece(whole[start:end], lead))
            start, lead = end, whole[max(end - LEAD - 1, 0) : end]
            if len(ready) == batch:
                yield ready
                ready = []
        enough = piece + LEAD if length > len(whole) - start else 2 * length
        waiting, length = [whole[start:]], len(whole) - start
    if length:
        ready.append(Piece("".join(waiting), lead))
    if ready:
        yield ready


def encode_pieces(tokenizer: Tokenizer, pieces: Sequence[Piece], fresh: bool) -> Ids:
    """Ids [n] of pieces that follow one another, as of one text. fresh: the text begins a history."""
    count = len(pieces)
    ids = tokenizer.encode_batch([p.lead for p in pieces] + [p.lead + p.text for p in pieces])
    parts = []
    for piece, head, whole in zip(pieces, ids[:count], ids[count:], strict=True):
        if (piece.lead or fresh) and np.array_equal(whole[: len(head)], head):
            parts.append(whole[len(head) :])
        else:
            parts.append(tokenizer.encode_more(piece.text))
    return np.concatenate(parts)


def _cuts(text: str, start: int, tokenizer: Tokenizer, piece: int, batch: int) -> Iterator[int]:
    """Places to cut, in order, as long as a whole piece and what is tried behind it are there."""
    most = piece * batch
    while len(text) - start >= piece + LEAD:
        end = _cut(text, start + max(piece // 2, 1), start + piece, tokenizer)
        if end is None:
            end = _cut(text, start + piece, min(start + most, len(text) - LEAD), tokenizer)
        if end is None:
            if len(text) - start < most + LEAD:
                return
            end = start + most
        yield end
        start = end


def _cut(text: str, low: int, high: int, tokenizer: Tokenizer) -> int | None:
    """Before a line break, else before a blank, else anywhere; None if tokens lie across all that was tried."""
    for mark in ("\n", " ", ""):
        at = high
        for _ in range(TRIES):
            at = text.rfind(mark, low, at) if mark else at - 1
            if at < low:
                break
            if _is_border(text, at, tokenizer):
                return at
    return None


def _is_border(text: str, at: int, tokenizer: Tokenizer) -> bool:
    """No token lies across a place, and what stands beside it is tokenized alike with and without the other side.

    Seen from two starts: in a run of digits or blanks the tokens depend on where it begins, and the starts then differ.
    """
    behind = text[at : at + LEAD]
    tails = []
    for start in (max(at - LEAD, 0), max(at - LEAD - 1, 0)):
        head, whole = tokenizer.encode_batch([text[start:at], text[start:at] + behind])
        if not np.array_equal(whole[: len(head)], head):
            return False
        tails.append(whole[len(head) :])
    return np.array_equal(tails[0], tails[1])

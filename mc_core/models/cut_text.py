"""The text of a part of a history, where its ends may lie inside a character."""

from __future__ import annotations

import codecs

from mc_core.models.tokenizer import Ids, Tokenizer

LONGEST = 4
"""Bytes of a character in UTF-8; so many tokens on either side tell where it begins and ends."""


def text_of_part(tokenizer: Tokenizer, before: Ids, ids: Ids, after: Ids) -> str:
    """The text of ``ids``, which stand between the others (``LONGEST`` tokens of each, if there are so many).

    A character belongs to the part that holds its first byte, so that texts of neighbours join to the text of both.
    Control tokens are written by their name; what is no UTF-8 reads as U+FFFD.
    """
    left, data, right = (
        b"".join(tokenizer.token_bytes(token) for token in part.tolist()) for part in (before, ids, after)
    )
    data = data[_belonging(_pending(left[-LONGEST:]), data) :]
    data += right[: _belonging(_pending(data[-LONGEST:]), right)]
    text = data.decode("utf-8", "replace")
    return text if left or not tokenizer.pieces.strips_first_space else text.removeprefix(" ")


def _pending(data: bytes) -> bytes:
    """The bytes at the end that begin a character."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(data)
    return decoder.getstate()[0]


def _belonging(pending: bytes, data: bytes) -> int:
    """How many bytes of ``data`` belong to the character, whole or not, that ``pending`` begins."""
    size = 0
    while pending and size < len(data):
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            whole = decoder.decode(pending + data[size : size + 1])
        except UnicodeDecodeError:
            break
        size += 1
        pending = b"" if whole else decoder.getstate()[0]
    return size

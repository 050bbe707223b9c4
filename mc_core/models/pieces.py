"""The bytes behind a token, for the two kinds of tokenizers whose tokens stand for bytes wherever they are."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_of_character() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 stands for itself, the other 68 bytes for U+0100 onwards."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(moved)}


_BYTE_OF = _byte_of_character()


class PieceBytes:
    """Bytes of single tokens, remembered as they are asked for.

    ``known`` is False for tokenizers (word piece, word level) whose tokens read differently in different places.
    ``strips_first_space``: the decoder drops the space that starts a text.
    """

    def __init__(self, decoder: Mapping[str, Any] | None, token_of: Callable[[int], str | None]) -> None:
        """decoder: the ``decoder`` of tokenizer.json; token_of: id -> token as written in the vocabulary."""
        steps = _steps(decoder)
        kinds = [step["type"] for step in steps]
        self._token_of = token_of
        self._cache: dict[int, bytes] = {}
        self._byte_level = kinds == ["ByteLevel"]
        self._space = _space_mark(steps)
        self._fallback = "ByteFallback" in kinds
        plain = {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}
        self.known = self._byte_level or (self._space != "" and set(kinds) <= plain)
        self.strips_first_space = any(
            step["type"] == "Strip" or (step["type"] == "Metaspace" and step.get("prepend_scheme") != "never")
            for step in steps
        )

    def of(self, token: int) -> bytes | None:
        """The bytes of a token, b"" for an id without one; None if the tokenizer is of another kind."""
        if not self.known:
            return None
        if token not in self._cache:
            text = self._token_of(token)
            self._cache[token] = b"" if text is None else self._bytes(text)
        return self._cache[token]

    def _bytes(self, text: str) -> bytes:
        if self._byte_level:
            values = [_BYTE_OF.get(character) for character in text]
            inside = [value for value in values if value is not None]
            # A control token's name may leave the alphabet: then it stands for itself.
            return bytes(inside) if len(inside) == len(values) else text.encode()
        byte = _BYTE_TOKEN.fullmatch(text) if self._fallback else None
        return bytes([int(byte[1], 16)]) if byte else text.replace(self._space, " ").encode()


def _steps(decoder: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if decoder is None:
        return []
    return list(decoder["decoders"]) if decoder["type"] == "Sequence" else [decoder]


def _space_mark(steps: list[Mapping[str, Any]]) -> str:
    """The character that stands for a space, "" if there is none."""
    for step in steps:
        if step["type"] == "Metaspace":
            return str(step["replacement"])
        if step["type"] == "Replace" and step["content"] == " ":
            return str(step["pattern"].get("String", ""))
    return ""

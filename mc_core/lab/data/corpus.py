"""Any folder of JSON-lines files as documents: rows {"text", ..} are texts, rows {"messages", ..} are dialogues."""

from __future__ import annotations

import hashlib
import json
import lzma
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mc_core.errors import ConfigError

SUFFIXES = (".jsonl", ".jsonl.xz")
ROLES = ("system", "user", "assistant")
HELD_OUT_IN = 100


@dataclass(frozen=True)
class Document:
    """A text (one part, ``roles`` empty) or a dialogue (one part a message, with its role)."""

    parts: tuple[str, ...]
    roles: tuple[str, ...] = ()

    @property
    def held_out(self) -> bool:
        """One document in ``HELD_OUT_IN`` is kept from training; its content alone decides, so any machine agrees."""
        digest = hashlib.blake2b("\x00".join(self.parts).encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return int.from_bytes(digest, "big") % HELD_OUT_IN == 0


def corpus_files(folder: Path) -> list[Path]:
    """Files of a corpus folder, any depth, in name order; ConfigError if there are none."""
    files = sorted(path for path in folder.rglob("*") if path.name.endswith(SUFFIXES))
    if not files:
        raise ConfigError(f"data: {folder} holds no file that ends in {' or '.join(SUFFIXES)}")
    return files


def read_documents(path: Path) -> Iterator[Document]:
    """Documents of one file in order; rows of another shape (and empty ones) are left out.

    ConfigError names the file and the line if a line is not JSON.
    """
    opener = lzma.open if path.suffix == ".xz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ConfigError(f"{path}, line {number}: not JSON ({error})") from None
            document = _document(row)
            if document is not None:
                yield document


def held_out_documents(folder: Path) -> list[Document]:
    """The documents of a corpus folder that are kept from training; ConfigError if there are none."""
    found = [document for file in corpus_files(folder) for document in read_documents(file) if document.held_out]
    if not found:
        raise ConfigError(f"data: {folder} is too small to hold out a document (one in {HELD_OUT_IN} is)")
    return found


def _document(row: Any) -> Document | None:
    if not isinstance(row, dict):
        return None
    text, messages = row.get("text"), row.get("messages")
    if isinstance(text, str) and text.strip():
        return Document((text,))
    if not isinstance(messages, list) or not messages:
        return None
    if not all(isinstance(m, dict) and m.get("role") in ROLES and isinstance(m.get("content"), str) for m in messages):
        return None
    return Document(tuple(m["content"].strip() for m in messages), tuple(m["role"] for m in messages))

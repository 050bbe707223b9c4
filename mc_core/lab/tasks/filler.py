"""The hay: documents of a held-out corpus or a file, shuffled, as many tokens as are asked for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.random import Generator

from mc_core.errors import ConfigError
from mc_core.lab.data.arrays import Ids, Ints
from mc_core.lab.data.corpus import Document
from mc_core.models.tokenizer import Tokenizer

PIECE = 65_536
"""Characters of a file that are encoded at a time; each piece is a document."""


_QUOTE = "(?:[\"'*_)]|\u201d|\u2019)*"
_SHORT_FORMS = (
    "Mr",
    "Mrs",
    "Ms",
    "Dr",
    "St",
    "Prof",
    "Rev",
    "Capt",
    "Col",
    "Gen",
    "Hon",
    "Messrs",
    "vs",
    "No",
    "[A-Z]",
)
_SHORT = "".join(rf"(?<!\b{word})" for word in _SHORT_FORMS)
SENTENCE_END = re.compile(rf"(?:[!?]|{_SHORT}\.){_QUOTE}(?=\s+[\"'(]?[^\sa-z]|\s*$)".encode())
"""The end of a sentence in UTF-8: no short form such as "Mr.", no initial, and what follows does not go on in small
letters."""


class Filler:
    """Documents to take text from; the tokens at which a word begins tell where a statement may stand."""

    def __init__(self, documents: Sequence[Ids], tokenizer: Tokenizer) -> None:
        """Control tokens are left out, so that the text is the same however it is read. ``prefix``: what the tokenizer
        puts before a raw text, and so before a history that is ingested."""
        control = np.array(sorted(tokenizer.control_ids), np.int32)
        cleaned = (ids[~np.isin(ids, control)] for ids in documents)
        self.documents = [ids.astype(np.int32) for ids in cleaned if len(ids)]
        if not self.documents:
            raise ConfigError("the text for the history is empty")
        self.tokens = sum(map(len, self.documents))
        self.prefix = tokenizer.prefix_ids
        used = np.unique(np.concatenate(self.documents))
        begins = [token for token in used.tolist() if tokenizer.token_bytes(token)[:1] in (b" ", b"\n")]
        self._begins = np.array(begins, np.int32)
        self._bytes = {token: tokenizer.token_bytes(token) for token in used.tolist()}

    @classmethod
    def of_documents(cls, documents: Sequence[Document], tokenizer: Tokenizer) -> Filler:
        """Documents of a corpus; a dialogue is a text of paragraphs, each under its role."""
        texts = [
            "".join(f"{role}\n{part}\n" for role, part in zip(document.roles, document.parts, strict=True))
            if document.roles
            else document.parts[0]
            for document in documents
        ]
        return cls(tokenizer.encode_batch(texts), tokenizer)

    @classmethod
    def of_text(cls, path: Path, tokenizer: Tokenizer) -> Filler:
        """A UTF-8 file."""
        text = path.read_text(encoding="utf-8")
        pieces = [text[at : at + PIECE] for at in range(0, len(text), PIECE)]
        return cls(tokenizer.encode_batch(pieces), tokenizer)

    def take(self, rng: Generator, count: int) -> Ids:
        """``count`` tokens of documents in random order, over and over in another order if they are too few."""
        parts: list[Ids] = []
        missing = count
        while missing > 0:
            for i in rng.permutation(len(self.documents)).tolist():
                parts.append(self.documents[i][:missing])
                missing -= len(parts[-1])
                if missing <= 0:
                    break
        return np.concatenate(parts) if parts else np.empty(0, np.int32)

    def passage(self, rng: Generator, count: int) -> Ids:
        """Whole sentences of one document, at most ``count`` tokens; less than a sentence if that is longer."""
        sizes = np.array([len(ids) for ids in self.documents])
        ids = self.documents[int(rng.choice(len(sizes), p=sizes / sizes.sum()))]
        start = int(rng.integers(max(len(ids) - count, 0) + 1))
        ids = ids[start : start + count]
        inside = self.sentence_borders(ids)[1:-1]
        return ids[inside[0] : inside[-1]] if len(inside) > 1 else ids

    def borders(self, ids: Ids) -> Ints:
        """Offsets in ``ids`` at which a statement breaks no word, the start and the end among them, ascending."""
        inside = np.flatnonzero(np.isin(ids, self._begins))
        return np.unique(np.concatenate([[0], inside, [len(ids)]]).astype(np.int64))

    def sentence_borders(self, ids: Ids) -> Ints:
        """Those of ``borders`` at which a sentence or a paragraph ends, the start and the end among them."""
        parts = [self._bytes[token] for token in ids.tolist()]
        places = np.cumsum([0, *map(len, parts)])
        ends = [found.end() for found in SENTENCE_END.finditer(b"".join(parts))]
        borders = self.borders(ids)
        inside = np.isin(places[borders], ends)
        return borders[inside | (borders == 0) | (borders == len(ids))]

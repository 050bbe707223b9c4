"""The documents that questions are about, found in a corpus by the digest of their text."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mc_core.errors import ConfigError
from mc_core.lab.data.corpus import SUFFIXES, Document, corpus_files, read_documents
from mc_core.lab.tasks.real_text.questions import RealQuestion

LONGEST_FILLER = 30_000
"""Characters: a longer document would leave a history little else beside it."""


def text_of(document: Document) -> str:
    """Its parts, a line each: what evidence is counted in."""
    return "\n".join(document.parts)


def digest_of(text: str) -> str:
    """[64 hex digits]"""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class Texts:
    """asked: documents of questions by digest. others: by file, digest and text of short ones that nothing is asked
    about, of the same side of the held-out split, in order of their digests: a draw that any machine repeats."""

    asked: dict[str, str]
    others: dict[str, list[tuple[str, str]]]


def read_texts(data: Path, questions: Sequence[RealQuestion], held_out: bool) -> Texts:
    """Read the files that the questions name.

    ConfigError if a document is not in ``data`` as it was when its questions were written, evidence lies outside of
    it, or it is on the other side of the held-out split.
    """
    wanted = {question.sha256 for question in questions}
    texts = Texts({}, {name: [] for name in sorted({question.file for question in questions})})
    for path in corpus_files(data):
        others = texts.others.get(_name(path.relative_to(data)))
        if others is not None:
            for document in read_documents(path):
                if document.held_out == held_out:
                    _sort_in(text_of(document), wanted, texts.asked, others)
            others.sort()
    _check(data, questions, texts.asked, held_out)
    return texts


def _sort_in(text: str, wanted: set[str], asked: dict[str, str], others: list[tuple[str, str]]) -> None:
    digest = digest_of(text)
    if digest in wanted:
        asked[digest] = text
    elif len(text) <= LONGEST_FILLER:
        others.append((digest, text))


def _check(data: Path, questions: Sequence[RealQuestion], asked: dict[str, str], held_out: bool) -> None:
    missing = sorted({question.document for question in questions if question.sha256 not in asked})
    if missing:
        side = "held-out documents" if held_out else "training documents"
        raise ConfigError(
            f"data: of the documents that questions are about, {len(missing)} are not among the {side} of {data}, or "
            f"their text has changed (sha256): {'; '.join(missing[:3])}{' ..' if len(missing) > 3 else ''}"
        )
    for question in questions:
        length = len(asked[question.sha256])
        if not question.evidence or any(not 0 <= start < end <= length for start, end in question.evidence):
            raise ConfigError(f"evidence must lie in the {length} characters of {question.document}: {question}")


def _name(path: Path) -> str:
    """A file's name without its ending, with forward slashes."""
    ending = next(suffix for suffix in sorted(SUFFIXES, key=len, reverse=True) if path.name.endswith(suffix))
    return path.as_posix().removesuffix(ending)

"""Long histories of real text: short documents joined, long ones cut into windows of whole paragraphs."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mc_core.errors import ConfigError
from mc_core.lab.data.arrays import Ids, Range
from mc_core.lab.tasks.real_text.documents import Texts
from mc_core.lab.tasks.real_text.questions import RealQuestion
from mc_core.models.tokenizer import Tokenizer

JOINED = 130_000
"""Characters that short documents are joined to, some 32 k tokens."""
WINDOW = 160_000
"""Characters of a window of a long document at most, some 40 k tokens."""
BETWEEN = "\n\n"
"""Between two documents, and between two paragraphs of one."""


@dataclass(frozen=True, eq=False)
class RealHistory:
    """Token ids [N]; what is asked of them; spans: of each question's evidence, in tokens."""

    name: str
    ids: Ids
    questions: tuple[RealQuestion, ...]
    spans: tuple[tuple[Range, ...], ...]


def real_histories(questions: Sequence[RealQuestion], texts: Texts, tokenizer: Tokenizer) -> list[RealHistory]:
    """One history a group, or one a window of a long document, in the order of the questions."""
    found: list[RealHistory] = []
    for group in dict.fromkeys(question.group for question in questions):
        asked = [question for question in questions if question.group == group]
        longest = max(len(texts.asked[question.sha256]) for question in asked)
        make = _windows if longest > WINDOW else _joined
        found += make(group, asked, texts, tokenizer)
    return found


def _joined(group: str, asked: list[RealQuestion], texts: Texts, tokenizer: Tokenizer) -> list[RealHistory]:
    """The documents asked about among others of the file that most of them come from, in order of their digests."""
    documents = {question.sha256: texts.asked[question.sha256] for question in asked}
    room = JOINED - sum(len(text) + len(BETWEEN) for text in documents.values())
    file = Counter(question.file for question in asked).most_common(1)[0][0]
    for digest, text in texts.others[file]:
        if len(text) + len(BETWEEN) <= room:
            documents[digest] = text
            room -= len(text) + len(BETWEEN)
    starts: dict[str, int] = {}
    at = 0
    for digest in sorted(documents):
        starts[digest] = at
        at += len(documents[digest]) + len(BETWEEN)
    whole = BETWEEN.join(documents[digest] for digest in sorted(documents))
    places = [_moved(question.evidence, starts[question.sha256]) for question in asked]
    return [_history(group, whole, asked, places, tokenizer)]


def _windows(group: str, asked: list[RealQuestion], texts: Texts, tokenizer: Tokenizer) -> list[RealHistory]:
    """The windows of each long document that something is asked about."""
    found = []
    for digest in dict.fromkeys(question.sha256 for question in asked):
        text = texts.asked[digest]
        mine = [question for question in asked if question.sha256 == digest]
        for number, (start, end) in enumerate(window_borders(text), 1):
            inside = [question for question in mine if start <= question.evidence[0][0] < end]
            across = [question for question in inside if question.evidence[-1][1] > end]
            if across:
                raise ConfigError(f"evidence must lie in one window of {across[0].document}: {across[0]}")
            if inside:
                places = [_moved(question.evidence, -start) for question in inside]
                found.append(_history(f"{group} {number}", text[start:end], inside, places, tokenizer))
    return found


def window_borders(text: str) -> list[Range]:
    """A text in as few windows of about equal length as ``WINDOW`` allows, each of whole paragraphs."""
    count = -(-len(text) // WINDOW)
    cuts = [0]
    for number in range(1, count):
        cut = text.find(BETWEEN, number * len(text) // count)
        cuts.append(len(text) if cut < 0 else cut + len(BETWEEN))
    return [(start, end) for start, end in zip(cuts, [*cuts[1:], len(text)], strict=True) if start < end]


def _moved(places: Sequence[Range], by: int) -> list[Range]:
    return [(start + by, end + by) for start, end in places]


def _history(
    name: str, text: str, asked: list[RealQuestion], places: list[list[Range]], tokenizer: Tokenizer
) -> RealHistory:
    ids, spans = encode_places(text, [place for each in places for place in each], tokenizer)
    ordered = iter(spans)
    return RealHistory(name, ids, tuple(asked), tuple(tuple(next(ordered) for _ in each) for each in places))


def encode_places(text: str, places: Sequence[Range], tokenizer: Tokenizer) -> tuple[Ids, list[Range]]:
    """Text -> ids, and where each of ``places`` (characters) lies in them.

    The text is cut at the places' borders and encoded piece by piece, so that every tokenizer can tell. A single blank
    before a place goes with it, as most vocabularies write words.
    """
    leading = [start - (text[start - 1 : start] == " " and not text[start].isspace()) for start, _ in places]
    cuts = sorted({0, len(text), *leading, *(end for _, end in places)})
    pieces = [text[start:end] for start, end in itertools.pairwise(cuts)]
    encoded = [tokenizer.encode(piece) if i == 0 else tokenizer.encode_more(piece) for i, piece in enumerate(pieces)]
    tokens = dict(zip(cuts, np.cumsum([0, *map(len, encoded)]).tolist(), strict=True))
    ids = np.concatenate(encoded) if encoded else np.empty(0, np.int32)
    return ids, [(tokens[start], tokens[end]) for start, (_, end) in zip(leading, places, strict=True)]

"""The peer to beat: BM25 over chunks of the history, the best of them in one ordinary prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import groupby

import numpy as np

from mc_core.lab.data.arrays import Ids, Ints, Range
from mc_core.lab.evaluation.prompt import Prompt
from mc_core.models.tokenizer import Tokenizer

CHUNK = 128
"""Tokens of a chunk."""
REQUEST = "Use the following text to answer the question.\n\n{chunks}\n\nQuestion: {question}"
MISSING = "needs the package bm25s: pip install megacontext[eval]"


def rag_missing() -> str | None:
    """Why there can be no such baseline here, None if there can."""
    return MISSING if find_spec("bm25s") is None else None


@dataclass(frozen=True, eq=False)
class Retrieved:
    """A prompt's ids, what closes a reply to it, and the tokens [start, end) of the history that stand in it."""

    ids: Ids
    suffix: Ids
    shown: tuple[Range, ...]

    def holds(self, spans: Sequence[Range]) -> bool:
        """Whether each of the spans stands in the prompt whole."""
        return all(any(first <= start and end <= last for first, last in self.shown) for start, end in spans)


class Retriever:
    """Finds chunks of one history; needs the package ``bm25s``, with its usual settings and English stop words."""

    def __init__(self, ids: Ids, tokenizer: Tokenizer, prompt: Prompt) -> None:
        self._ids, self._tokenizer, self._prompt = ids, tokenizer, prompt
        self._rank = _bm25([tokenizer.decode(ids[at : at + CHUNK]) for at in range(0, len(ids), CHUNK)])

    def ask(self, question: str, room: int) -> Retrieved:
        """The best chunks that share a word with the question, in order of place, as many as ``room`` tokens hold."""
        ranked = self._rank(question)[: room // CHUNK]
        while True:
            found = self._with(np.sort(ranked), question)
            if len(found.ids) <= room or not len(ranked):
                return found
            ranked = ranked[:-1]

    def _with(self, chunks: Ints, question: str) -> Retrieved:
        """Chunks side by side are one text; a blank line parts the others."""
        runs = [
            [chunk for _, chunk in run]
            for _, run in groupby(enumerate(chunks.tolist()), lambda pair: pair[1] - pair[0])
        ]
        shown = tuple((run[0] * CHUNK, min((run[-1] + 1) * CHUNK, len(self._ids))) for run in runs)
        texts = [self._tokenizer.decode(self._ids[start:end]).strip() for start, end in shown]
        return Retrieved(*self._prompt.alone(REQUEST.format(chunks="\n\n".join(texts), question=question)), shown)


def _bm25(texts: Sequence[str]) -> Callable[[str], Ints]:
    """A question -> the numbers of the texts that share a word with it, the best first."""
    import bm25s

    index = bm25s.BM25()
    words = bm25s.tokenize(list(texts), stopwords="en", show_progress=False)
    if not words.vocab:
        return lambda question: np.empty(0, np.int64)
    index.index(words, show_progress=False)

    def ranked(question: str) -> Ints:
        asked = bm25s.tokenize(question, stopwords="en", return_ids=False, show_progress=False)[0]
        scores = index.get_scores(asked) if asked else np.zeros(len(texts))
        order = np.argsort(-scores, kind="stable")
        return order[scores[order] > 0].astype(np.int64)

    return ranked

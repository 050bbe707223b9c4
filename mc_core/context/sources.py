"""What the texts of a history are that are of no message: where each begins, its title and its kind."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

TextKind = Literal["document", "chat"]
MOST_SOURCES = 1024
"""Stored with every commit of a session; beyond them the oldest texts lose their titles."""


@dataclass(frozen=True)
class About:
    """title: of a text, None for one without; kind: a document, or the transcript of a chat."""

    title: str | None = None
    kind: TextKind = "document"


UNTITLED = About()


@dataclass(frozen=True)
class Source:
    """What text of no message is from token ``start`` of the history on, up to the next source."""

    start: int
    about: About


class Sources:
    """The sources of one history, in order. Never changed: what changes it makes another one."""

    def __init__(self, sources: Iterable[Source] = ()) -> None:
        self._all = tuple(sources)
        self._starts = np.array([source.start for source in self._all], np.int64)

    def __len__(self) -> int:
        return len(self._all)

    def marked(self, start: int, about: About) -> Sources:
        """The same before ``start``, and ``about`` from there on."""
        kept = self._all[: int(np.searchsorted(self._starts, start))]
        if (kept[-1].about if kept else UNTITLED) != about:
            kept = (*kept, Source(start, about))
        return Sources(kept[-MOST_SOURCES:])

    def cut(self, position: int) -> Sources:
        """Those of the history up to ``position``; what comes behind it is no part of them."""
        return self.marked(position, UNTITLED) if len(self) else self

    def number(self, token: int) -> int:
        """Of the source of a token; -1 before the first one."""
        return int(np.searchsorted(self._starts, token, side="right")) - 1

    def about(self, number: int) -> About:
        return self._all[number].about if number >= 0 else UNTITLED

    def start(self, number: int) -> int:
        return self._all[number].start if number >= 0 else 0

    def starts(self, start: int, end: int) -> list[int]:
        """Tokens in [start, end] at which a source begins."""
        first, last = np.searchsorted(self._starts, start), np.searchsorted(self._starts, end, side="right")
        return self._starts[first:last].tolist()

    def json(self) -> list[list[Any]]:
        return [[source.start, source.about.title, source.about.kind] for source in self._all]

    @classmethod
    def of_json(cls, rows: Sequence[Sequence[Any]]) -> Sources:
        return cls(Source(int(start), About(title, kind)) for start, title, kind in rows)

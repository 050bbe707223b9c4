"""What a model's own template writes around messages, for places of a history that stand apart (``excerpts``)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mc_core.context.sources import UNTITLED, About

Ids = NDArray[np.int32]
TEXT = -1
"""In place of a kind of message: text that is of no message."""


@dataclass(frozen=True, eq=False)
class MessageKind:
    """What the template writes around messages of one role.

    opening [n], closing [m]: begin with a control token, which no text of a message can hold. mark: the part of the
    opening that tells it from others: a message that begins with a line break may grow together with the rest.
    """

    role: str
    opening: Ids
    closing: Ids
    mark: int


@dataclass(frozen=True, eq=False)
class ReadingFormat:
    """The frames of one model. kinds: of messages. texts: around text of no message, by what it is. gap: where
    something of a message or text is left out. begin: tokens before any message, at the beginning of every history.
    """

    kinds: tuple[MessageKind, ...]
    texts: Callable[[About], MessageKind]
    gap: Ids
    begin: int = 0

    def kind(self, number: int, about: About = UNTITLED) -> MessageKind:
        """Of a kind of message, or of text that is ``about``."""
        return self.texts(about) if number == TEXT else self.kinds[number]

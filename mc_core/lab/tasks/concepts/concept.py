"""A thing that people say of themselves, in several wordings, and questions about it in other words altogether."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Concept:
    """``{v}`` value. stated and asked: wordings; no question shares a content word with any statement.

    kind: of the value, see ``values.py``. group: of two concepts of one group only one occurs in an episode, since
    a question about one could be taken for the other; by default a concept is a group of its own.
    """

    name: str
    kind: str
    stated: tuple[str, ...]
    asked: tuple[str, ...]
    answer: str
    group: str = ""

    @property
    def family(self) -> str:
        """The group, or the name if there is none."""
        return self.group or self.name

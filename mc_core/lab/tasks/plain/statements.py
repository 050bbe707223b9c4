"""Statements of everyday prose, one JSON object a line: {"statement", "question", "values", "wording"}."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

from mc_core.errors import ConfigError
from mc_core.lab.tasks.episode import Asked, Episode
from mc_core.lab.tasks.loose import SPELLINGS, tells
from mc_core.lab.tasks.plain.rows import check_different, check_fields, read_rows

WRITTEN = {"plain": "held_out.jsonl", "plain_tuning": "tuning.jsonl"}
"""Suites of statements, and their files. ``plain`` is held out: nothing may be tuned on it, or trained."""
FIELDS = {"statement": str, "question": str, "values": list, "wording": str}


@dataclass(frozen=True)
class Statement:
    """statement: whole sentences. values: what a right reply tells, each of them (``loose.tells``). wording: which of
    the file's wordings it is in."""

    statement: str
    question: str
    values: tuple[str, ...]
    wording: str

    def __post_init__(self) -> None:
        for value in self.values:
            if not isinstance(value, str) or not all(part.strip() for part in value.split(SPELLINGS)):
                raise ConfigError(f"values must be texts that are not blank, got {value!r}")
            if not tells(self.statement, value):
                raise ConfigError(f"values: {value!r} is not in the statement {self.statement!r}")
            if tells(self.question, value):
                raise ConfigError(f"values: {value!r} is told by the question {self.question!r} itself")

    @property
    def asked(self) -> Asked:
        """The question about an episode of this statement alone."""
        return Asked(self.question, self.statement, self.values, (0,), loose=True)

    def episode(self, task: str) -> Episode:
        """The statement as what is said, its question as what is asked."""
        return Episode(task, (self.statement,), (self.asked,))


@cache
def statements(suite: str) -> tuple[Statement, ...]:
    """Of a suite in ``WRITTEN``; ConfigError if its file is not in the package or has a mistake."""
    file = files(__package__) / WRITTEN[suite]
    if not file.is_file():
        raise ConfigError(f"{suite} needs {WRITTEN[suite]} in {__package__}, which is not there")
    return read_statements(file)


def read_statements(file: Traversable) -> tuple[Statement, ...]:
    """Of a file; ConfigError names the line and the field of a mistake, or what is said or asked twice."""
    found = read_rows(file, _statement)
    check_different(file, "statement", [each.statement for each in found])
    check_different(file, "question", [each.question for each in found])
    return found


def _statement(row: Any) -> Statement:
    check_fields(row, FIELDS)
    return Statement(row["statement"], row["question"], tuple(row["values"]), row["wording"])

"""Statements of everyday prose, one JSON object a line: {"statement", "question", "values", "wording"}."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

from mc_core.errors import ConfigError
from mc_core.lab.tasks.episode import Asked, Episode
from mc_core.lab.tasks.loose import tells

WRITTEN = {"plain": "held_out.jsonl", "plain_tuning": "tuning.jsonl"}
"""Suites of statements, and their files. ``plain`` is held out: nothing may be tuned on it, or trained."""


@dataclass(frozen=True)
class Statement:
    """statement: whole sentences. values: what a right reply tells, each of them (``loose.tells``). wording: which of
    the file's wordings it is in."""

    statement: str
    question: str
    values: tuple[str, ...]
    wording: str

    def __post_init__(self) -> None:
        for name in ("statement", "question", "wording"):
            if not getattr(self, name).strip():
                raise ConfigError(f"{name} must not be blank")
        if not self.values or not all(part.strip() for value in self.values for part in value.split("|")):
            raise ConfigError(f"values must name at least one text, none of them blank, got {self.values}")
        for value in self.values:
            if not tells(self.statement, value):
                raise ConfigError(f"values: {value!r} is not in the statement {self.statement!r}")
            if tells(self.question, value):
                raise ConfigError(f"values: {value!r} is told by the question {self.question!r} itself")

    def episode(self, task: str) -> Episode:
        """The statement as what is said, its question as what is asked."""
        asked = Asked(self.question, self.statement, self.values, (0,), loose=True)
        return Episode(task, (self.statement,), (asked,))


@cache
def statements(suite: str) -> tuple[Statement, ...]:
    """Of a suite in ``WRITTEN``; ConfigError if its file is not in the package or has a mistake."""
    file = files(__package__) / WRITTEN[suite]
    if not file.is_file():
        raise ConfigError(f"{suite} needs {WRITTEN[suite]} in {__package__}, which is not there")
    return read_statements(file)


def read_statements(file: Traversable) -> tuple[Statement, ...]:
    """Of a file; ConfigError names the line and the field of a mistake, or what is said or asked twice."""
    found: list[Statement] = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            found.append(_statement(json.loads(line)))
        except json.JSONDecodeError as error:
            raise ConfigError(f"{file.name}, line {number}: not JSON ({error})") from None
        except ConfigError as error:
            raise ConfigError(f"{file.name}, line {number}: {error}") from None
    for name in ("statement", "question"):
        texts = [getattr(each, name) for each in found]
        if len({*texts}) < len(texts):
            twice = next(text for text in texts if texts.count(text) > 1)
            raise ConfigError(f"{file.name}: the {name} {twice!r} is there twice")
    if not found:
        raise ConfigError(f"{file.name} holds no statement")
    return tuple(found)


def _statement(row: Any) -> Statement:
    names = ("statement", "question", "values", "wording")
    if not isinstance(row, dict) or set(row) != {*names}:
        raise ConfigError(f"a row must have the fields {', '.join(names)}")
    if not isinstance(row["values"], list) or not all(isinstance(value, str) for value in row["values"]):
        raise ConfigError(f"values must be a list of texts, got {row['values']!r}")
    for name in ("statement", "question", "wording"):
        if not isinstance(row[name], str):
            raise ConfigError(f"{name} must be a text, got {row[name]!r}")
    return Statement(row["statement"], row["question"], tuple(row["values"]), row["wording"])

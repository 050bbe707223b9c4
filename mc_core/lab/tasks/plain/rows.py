"""Rows of the package's JSON-lines files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib.resources.abc import Traversable
from typing import Any, TypeVar

from mc_core.errors import ConfigError

T = TypeVar("T")


def read_rows(file: Traversable, make: Callable[[Any], T]) -> tuple[T, ...]:
    """What ``make`` makes of each line; ConfigError names the file and the line of a mistake, or says it is empty."""
    found: list[T] = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            found.append(make(json.loads(line)))
        except json.JSONDecodeError as error:
            raise ConfigError(f"{file.name}, line {number}: not JSON ({error})") from None
        except ConfigError as error:
            raise ConfigError(f"{file.name}, line {number}: {error}") from None
    if not found:
        raise ConfigError(f"{file.name} holds no row")
    return tuple(found)


def check_fields(row: Any, fields: Mapping[str, type]) -> None:
    """ConfigError if a row has not just these fields, each of its type: a text that is not blank, or a list."""
    if not isinstance(row, dict) or set(row) != set(fields):
        raise ConfigError(f"a row must have the fields {', '.join(fields)}")
    for name, kind in fields.items():
        if not isinstance(row[name], kind) or not row[name] or (kind is str and not row[name].strip()):
            raise ConfigError(
                f"{name} must be a {'text' if kind is str else 'list'} that is not blank, got {row[name]!r}"
            )


def check_different(file: Traversable, what: str, texts: list[str]) -> None:
    """ConfigError if a text is there twice."""
    if len({*texts}) < len(texts):
        twice = next(text for text in texts if texts.count(text) > 1)
        raise ConfigError(f"{file.name}: the {what} {twice!r} is there twice")

"""Chats in which the user tells things first, and the talk of all and nothing that follows; written by hand."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from mc_core.errors import ConfigError
from mc_core.lab.tasks.plain.rows import check_different, check_fields, read_rows
from mc_core.lab.tasks.plain.statements import Statement

CHATS, TALK = "chats.jsonl", "talk.jsonl"
PASTED = "{text}"
"""Where a user pastes a passage of some text into what they say."""


@dataclass(frozen=True)
class Turn:
    """What the user says, and the reply."""

    user: str
    assistant: str

    @property
    def pastes(self) -> bool:
        return PASTED in self.user


@dataclass(frozen=True)
class Told:
    """A turn in which the user tells something: ``statement`` is a part of what they say."""

    turn: Turn
    statement: Statement


@dataclass(frozen=True)
class Chat:
    """The first turns of a chat; each tells one thing."""

    name: str
    told: tuple[Told, ...]


@cache
def chats() -> tuple[Chat, ...]:
    """{"chat", "told": [{"user", "assistant", "statement", "question", "values"}]} a line.

    ConfigError names the line and the field of a mistake.
    """
    file = files(__package__) / CHATS
    found = read_rows(file, _chat)
    check_different(file, "chat", [chat.name for chat in found])
    return found


@cache
def talk() -> tuple[Turn, ...]:
    """{"user", "assistant"} a line: turns that tell nothing, some of them around a pasted text."""
    file = files(__package__) / TALK
    found = read_rows(file, _turn)
    check_different(file, "user", [turn.user for turn in found])
    return found


def _chat(row: Any) -> Chat:
    check_fields(row, {"chat": str, "told": list})
    return Chat(row["chat"], tuple(_told(row["chat"], part) for part in row["told"]))


def _told(name: str, row: Any) -> Told:
    check_fields(row, {"user": str, "assistant": str, "statement": str, "question": str, "values": list})
    if row["statement"] not in row["user"]:
        raise ConfigError(f"statement must be a part of what the user says, got {row['statement']!r}")
    statement = Statement(row["statement"], row["question"], tuple(row["values"]), name)
    return Told(Turn(row["user"], row["assistant"]), statement)


def _turn(row: Any) -> Turn:
    check_fields(row, {"user": str, "assistant": str})
    return Turn(row["user"], row["assistant"])

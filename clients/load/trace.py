"""Arrivals and lengths of real services: Azure's CSV and Mooncake's JSON lines, plain or .xz."""

from __future__ import annotations

import csv
import itertools
import json
import lzma
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TextIO

AZURE = ["TIMESTAMP", "ContextTokens", "GeneratedTokens"]
SHARED_BLOCKS = 2
"""Blocks that two requests of one conversation must share; a single one may be a system prompt that all have."""


class TraceError(ValueError):
    """A trace that can't be read; names the line."""


@dataclass(frozen=True)
class Row:
    """A request ``at`` seconds after the first: a prompt with all its history, and a reply, in tokens.

    blocks: hashes of the prompt's blocks of tokens; empty if the trace has none.
    """

    at: float
    input_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()


def read_trace(path: Path) -> list[Row]:
    """All rows by time; TraceError for a file in neither format, with a bad row or without rows."""
    opener = lzma.open if path.suffix == ".xz" else open
    try:
        with opener(path, "rt", encoding="utf-8", newline="") as file:
            rows = list(_rows(file))
    except (lzma.LZMAError, UnicodeDecodeError) as error:
        raise TraceError(f"{path} can't be read: {error}") from error
    if not rows:
        raise TraceError(f"{path} has no requests")
    first = min(row.at for row in rows)
    shifted = [Row(row.at - first, row.input_tokens, row.output_tokens, row.blocks) for row in rows]
    return sorted(shifted, key=lambda row: row.at)


def _rows(file: TextIO) -> Iterator[Row]:
    first = file.readline()
    header = next(csv.reader([first]), []) == AZURE
    if not header and not first.lstrip().startswith("{"):
        raise TraceError(f"line 1: neither {','.join(AZURE)} nor a JSON object")
    parse = _azure if header else _mooncake
    for number, line in enumerate(itertools.chain([] if header else [first], file), 2 if header else 1):
        if not line.strip():
            continue
        try:
            row = parse(line)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise TraceError(f"line {number}: {type(error).__name__}: {error}") from error
        if row.input_tokens < 1 or row.output_tokens < 0:
            raise TraceError(f"line {number}: a prompt needs at least 1 token, a reply at least 0")
        yield row


def _azure(line: str) -> Row:
    time, context, generated = next(csv.reader([line]))
    return Row(datetime.fromisoformat(time).timestamp(), int(context), int(generated))


def _mooncake(line: str) -> Row:
    body = json.loads(line)
    blocks = tuple(int(block) for block in body.get("hash_ids", ()))
    return Row(float(body["timestamp"]) / 1000, int(body["input_length"]), int(body["output_length"]), blocks)


@dataclass(frozen=True)
class Continued:
    """A row as a turn of a conversation: what it adds to the history, the rest being there already."""

    row: Row
    conversation: int
    new_tokens: int


def conversations(rows: Iterable[Row]) -> list[Continued]:
    """Which rows go on with which conversation; a row without blocks, or that shares none, begins its own.

    A row continues an earlier one if its blocks begin with the earlier one's, of which the last may differ (it was not
    full then), and if it is longer than the earlier prompt and reply together. Each row is continued at most once.
    """
    open_ends: dict[tuple[int, ...], tuple[int, int]] = {}
    turns: list[Continued] = []
    count = 0
    for row in rows:
        found = _ending(open_ends, row)
        if found is None:
            conversation, known = count, 0
            count += 1
        else:
            conversation, known = open_ends.pop(found)
        turns.append(Continued(row, conversation, row.input_tokens - known))
        full = row.blocks[:-1]
        if len(full) >= SHARED_BLOCKS:
            open_ends[full] = conversation, row.input_tokens + row.output_tokens
    return turns


def _ending(open_ends: dict[tuple[int, ...], tuple[int, int]], row: Row) -> tuple[int, ...] | None:
    """The longest history that the row's prompt begins with."""
    for length in range(len(row.blocks), SHARED_BLOCKS - 1, -1):
        key = row.blocks[:length]
        if key in open_ends and open_ends[key][1] < row.input_tokens:
            return key
    return None

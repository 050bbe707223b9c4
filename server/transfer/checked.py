"""An export that was read once from end to end, and is as it was written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from pydantic import ValidationError

from server.errors import ApiError, bad_request
from server.transfer.form import LINES, MAX_LINE, End, Head, Ids, State, StoredNote, end_line

Parsed = Head | State | Ids | StoredNote | End


@dataclass(frozen=True)
class Checked:
    """A whole file: its head and state, and where the rest is read from, a line at a time. largest: token id."""

    head: Head
    state: State
    largest: int
    file: IO[bytes]

    def within(self, vocabulary: int) -> Checked:
        """Itself; ApiError 400 if it has tokens that a model of so many does not know."""
        if self.largest >= vocabulary:
            raise bad_request(
                f"the export has token {self.largest}, but the vocabulary has {vocabulary}", "body", "import_mismatch"
            )
        return self

    def ids(self) -> Iterator[Ids]:
        """The history, in order."""
        yield from (line for line in self._lines() if isinstance(line, Ids))

    def notes(self) -> Iterator[StoredNote]:
        """In the order of their writing."""
        yield from (line for line in self._lines() if isinstance(line, StoredNote))

    def _lines(self) -> Iterator[Parsed]:
        self.file.seek(0)
        for number, raw in _raw_lines(self.file):
            yield _parsed(number, raw)


def check(file: IO[bytes]) -> Checked:
    """Read all of it, a line at a time; ApiError 400 if it is no export, or not as it was written."""
    file.seek(0)
    found: list[Head | State] = []
    digest, tokens, notes, ended, largest = hashlib.sha256(), 0, 0, False, 0
    for number, raw in _raw_lines(file):
        if ended:
            raise damaged(f"line {number} follows its end")
        line = _parsed(number, raw)
        match line:
            case Head() | State():
                if len(found) != (0 if isinstance(line, Head) else 1) or tokens or notes:
                    raise damaged(f"line {number} is out of place")
                found.append(line)
            case _ if len(found) < 2:
                raise damaged(f"line {number} is out of place")
            case Ids():
                if line.start != tokens or notes:
                    raise damaged(f"line {number} is out of place")
                tokens, largest = tokens + len(line.ids), max(largest, max(line.ids))
            case StoredNote():
                _check_note(number, line, tokens)
                notes += 1
            case End():
                # The whole line, so that no byte of it is left unchecked.
                if raw != end_line(tokens, notes, digest.hexdigest()):
                    raise damaged("its checksum is not that of its bytes")
                ended = True
        digest.update(raw)
    if not ended:
        raise damaged("it breaks off")
    head, state = found
    assert isinstance(head, Head)
    assert isinstance(state, State)
    if head.tokens != tokens:
        raise damaged(f"it has {tokens} tokens of {head.tokens}")
    return Checked(head, state, largest, file)


def damaged(how: str) -> ApiError:
    return bad_request(f"the export is damaged: {how}", "body", "import_damaged")


def _check_note(number: int, line: StoredNote, tokens: int) -> None:
    try:
        note = line.note()
    except ValueError as error:
        raise damaged(f"line {number}: {error}") from error
    if note.position > tokens:
        raise damaged(f"line {number} lies past the history's end")


def _raw_lines(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    number = 0
    while raw := file.readline(MAX_LINE + 1):
        number += 1
        if len(raw) > MAX_LINE:
            raise damaged(f"line {number} is longer than {MAX_LINE} bytes")
        yield number, raw


def _parsed(number: int, raw: bytes) -> Parsed:
    try:
        return LINES.validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_input=False, include_context=False, include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"][1:])
        raise damaged(f"line {number}{f' ({place})' if place else ''}: {first['msg'][:200]}") from error

"""Finds calls of tools in a reply while it is generated."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

from server.streaming.pieces import CallArguments, CallEnd, CallStart, Piece, TextPiece
from server.tools.scan import ObjectScan, State
from server.tools.syntax import CallSyntax

_HEAD = re.compile(r'\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)', re.DOTALL)
_KEYS = ("arguments", "parameters")
_FIRST_KEY = re.compile(r'\{\s*"((?:[^"\\]|\\.)*)"', re.DOTALL)
_FIRST = ("name", *_KEYS, "id", "type")
"""Keys that a call's object may begin with; any other JSON is text as soon as that can be seen."""


class CallReader:
    """A ``PieceReader``: a small machine whose step reads what it can of the text at hand, and says which comes next.

    What turns out to be no call of a known tool is text again, with all that belongs to it. Blanks between text and
    a call, and behind a call, belong to the syntax. Arguments are told as they come.
    """

    def __init__(
        self,
        syntax: CallSyntax,
        names: Collection[str],
        id_of: Callable[[int], str],
        more_tags: Sequence[str] = (),
        *,
        demanded: bool = False,
    ) -> None:
        """more_tags: what may open a call beside the syntax's own tag. id_of: the id of a reply's n-th call. demanded:
        the reply's grammar is that of calls, so that there is no text."""
        self._syntax, self._names, self._id_of = syntax, frozenset(names), id_of
        self._tags = [tag for tag in (syntax.tag, *more_tags) if tag]
        self._bare = not syntax.tag
        self._buffer = ""
        self._lead = ""  # what opened the call that is being read
        self._pieces: list[Piece] = []
        self._count, self._demanded = 0, demanded
        self._after_call = False
        self._scan, self._scanned = ObjectScan(), 0
        self._step: Callable[[], bool] = self._begin if self._bare else self._text

    def feed(self, text: str) -> list[Piece]:
        self._buffer += text
        self._read()
        return self._told()

    def end(self, *, cut: bool = False) -> list[Piece]:
        if cut and self._may_begin_call():
            self._buffer = self._lead = ""
        # A broken call gives its text back, in which further ones may stand.
        while self._step in (self._open, self._call) and self._buffer + self._lead:
            self._broken()
            self._read()
        if self._step == self._arguments:
            self._pieces.append(CallEnd(self._count - 1))
        elif self._step in (self._text, self._begin) and not (self._after_call and self._buffer.isspace()):
            self._say(self._buffer)
        self._buffer = ""
        return self._told()

    def _read(self) -> None:
        while self._buffer and self._step():
            pass

    def _may_begin_call(self) -> bool:
        """Whether what is held back is the beginning of a call, if the reply was cut there. Of bare JSON that begins a
        reply, or of half a tag behind words, one cannot tell: it is text."""
        if self._step in (self._open, self._call) and self._lead.strip():
            return True
        return self._after_call or self._demanded

    # -- steps: True if there may be more to read ----------------------------------------------------------------

    def _begin(self) -> bool:
        """Where bare JSON would be a call: at the start of the reply."""
        if not (core := self._buffer.lstrip()):
            return False
        self._step = self._call if core.startswith("{") else self._text
        return True

    def _text(self) -> bool:
        found = [(at, tag) for tag in self._tags if (at := self._buffer.find(tag)) >= 0]
        if not found:
            keep = max((_overlap(self._buffer, tag) for tag in self._tags), default=0)
            sure = self._buffer[: len(self._buffer) - keep].rstrip()
            self._say(sure)
            self._buffer = self._buffer[len(sure) :]
            return False
        at, tag = min(found)
        sure = self._buffer[:at].rstrip()
        self._say(sure)
        self._lead, self._buffer = self._buffer[len(sure) : at + len(tag)], self._buffer[at + len(tag) :]
        self._step = self._open if self._syntax.listed and tag == self._syntax.tag else self._call
        return True

    def _open(self) -> bool:
        """Behind the tag of a list."""
        if not self._skip_blanks():
            return False
        if self._buffer[0] != "[":
            return self._broken()
        self._lead, self._buffer, self._step = self._lead + "[", self._buffer[1:], self._call
        return True

    def _call(self) -> bool:
        """At an object that may be a call."""
        if not self._skip_blanks():
            return False
        if self._buffer[0] != "{":
            return self._broken()
        if (head := _HEAD.match(self._buffer)) is not None:
            if (name := _name(head[1])) not in self._names:
                return self._broken()
            self._start(name)
            self._buffer, self._step = self._buffer[head.end() :], self._arguments
            return True
        if (first := _FIRST_KEY.match(self._buffer)) is not None and first[1] not in _FIRST:
            return self._broken()
        self._scanned = self._scan.walk(self._buffer, self._scanned)
        if self._scan.state is State.OPEN:
            return False
        call = _whole_call(self._buffer[: self._scanned]) if self._scan.state is State.CLOSED else None
        if call is None or call[0] not in self._names:
            return self._broken()
        end = self._scanned
        self._start(call[0])
        self._pieces += [CallArguments(self._count - 1, call[1]), CallEnd(self._count - 1)]
        self._buffer, self._step = self._buffer[end:], self._close
        return True

    def _arguments(self) -> bool:
        end = self._scan.walk(self._buffer)
        if end:
            self._pieces.append(CallArguments(self._count - 1, self._buffer[:end]))
        self._buffer = self._buffer[end:]
        if self._scan.state is State.OPEN:
            return False
        self._pieces.append(CallEnd(self._count - 1))
        whole = self._scan.state is State.CLOSED
        self._scan, self._step = (ObjectScan(depth=1), self._rest) if whole else (ObjectScan(), self._text)
        return True

    def _rest(self) -> bool:
        """Behind the arguments: the end of the call's object."""
        self._buffer = self._buffer[self._scan.walk(self._buffer) :]
        if self._scan.state is State.OPEN:
            return False
        self._scan, self._step = ObjectScan(), self._close
        return True

    def _close(self) -> bool:
        """Behind a call's object."""
        core = self._buffer.lstrip(" \t\r\n;" if self._bare else None)
        if not core or (self._syntax.closing != core and self._syntax.closing.startswith(core)):
            return False
        self._step = self._text
        if self._syntax.listed and core[0] in ",]":
            self._buffer, self._lead = core[1:], ""
            self._step = self._call if core[0] == "," else self._text
        elif self._bare and core[0] == "{":
            self._buffer, self._lead, self._step = core, "", self._call
        elif self._syntax.closing and core.startswith(self._syntax.closing):
            self._buffer = core[len(self._syntax.closing) :]
        return True

    # ------------------------------------------------------------------------------------------------------------

    def _skip_blanks(self) -> bool:
        core = self._buffer.lstrip()
        self._lead += self._buffer[: len(self._buffer) - len(core)]
        self._buffer = core
        return bool(core)

    def _start(self, name: str) -> None:
        self._pieces.append(CallStart(self._count, self._id_of(self._count), name))
        self._count += 1
        self._lead, self._after_call = "", True
        self._scan, self._scanned = ObjectScan(), 0

    def _broken(self) -> bool:
        lead, self._lead, self._step = self._lead, "", self._text
        self._scan, self._scanned = ObjectScan(), 0
        self._say(lead)
        return True

    def _say(self, text: str) -> None:
        if text:
            self._pieces.append(TextPiece(text))
            self._after_call = False

    def _told(self) -> list[Piece]:
        told, self._pieces = self._pieces, []
        return told


def _name(quoted: str) -> str:
    try:
        return str(json.loads(quoted, strict=False))
    except ValueError:
        return ""


def _whole_call(text: str) -> tuple[str, str] | None:
    """(name, arguments) of an object that is a call, whatever the order of its keys; None for any other."""
    try:
        value = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    given = [value[key] for key in _KEYS if value.get(key) is not None]
    arguments: Any = given[0] if given else {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments, strict=False)
        except (ValueError, RecursionError):
            return None
    if not isinstance(arguments, dict):
        return None
    return value["name"], json.dumps(arguments, ensure_ascii=False)


def _overlap(text: str, tag: str) -> int:
    """Length of the longest proper beginning of a tag that the text ends with."""
    return next((n for n in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:n])), 0)

"""The wall between a chat template's control tokens and what stands in messages.

A template sees the messages as they are, but for what looks like a control token in them: such a text, and a piece of
one at an end of a content (which could grow together with what the template writes beside it), is shown to it as one
private character that stands nowhere else. Where the rendered text holds one, the template's own control tokens are
found first, and the text between them, with everything put back, is encoded as plain text in its place.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from mc_core.models.tokenizer import SEAM, Ids, Tokenizer, without_surrogates
from server.errors import bad_request
from server.templates.messages import Message
from server.templates.tool_format import PLAIN, ToolFormat
from server.tools.plain import arguments_of
from server.tools.tool import ToolCall, call_names

_PRIVATE = range(0xF0000, 0xFFFFE)
_FIRST = chr(_PRIVATE[0])
_ROLE = re.compile(r"[a-z_]+")


class Wall:
    """``spoken``: control tokens that replies may hold as such, since models write them themselves (``<think>``)."""

    def __init__(self, tokenizer: Tokenizer, source: str, spoken: frozenset[int] = frozenset()) -> None:
        """source: the template; its private characters are not used."""
        self._tokenizer, self._source, self._spoken = tokenizer, source, spoken
        texts = [text.strip() for text in tokenizer.control_texts]
        self._starts = frozenset(text[:n] for text in texts for n in range(1, len(text)))
        self._ends = frozenset(text[n:] for text in texts for n in range(1, len(text)))
        self._longest = max(map(len, texts), default=0)

    def behind(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = (), form: ToolFormat = PLAIN
    ) -> Guarded:
        """Messages and tools as a template may see them; form: how it wants to see calls."""
        taken = {c for text in _texts([vars(message) for message in messages], tools) for c in text if c >= _FIRST}
        shelter = _Shelter(chr(code) for code in _PRIVATE if chr(code) not in taken | set(self._source))
        names = call_names([call for message in messages for call in message.tool_calls])

        def hidden(value: Any) -> Any:
            return _mapped(value, lambda text: self._hide(without_surrogates(text), frozenset(), shelter))

        dicts = []
        for message in messages:
            if not _ROLE.fullmatch(message.role):
                raise bad_request(f"a role is a word in small letters, got {message.role!r}", "messages")
            spoken = self._spoken if message.role == "assistant" else frozenset()
            content = self._hide(without_surrogates(message.content), spoken, shelter)
            entry: dict[str, Any] = {"role": message.role, "content": content}
            name = message.name or names.get(message.tool_call_id or "")
            if name is not None:
                entry["name"] = hidden(name)
            if message.tool_calls:
                entry["content"] = content or form.empty
                entry["tool_calls"] = [hidden(form.call(call)) for call in message.tool_calls]
            if message.tool_call_id is not None:
                entry["tool_call_id"] = hidden(form.id(message.tool_call_id))
            dicts.append(entry)
        return Guarded(self._tokenizer, dicts, hidden(list(tools)), shelter.hidden)

    def _hide(self, text: str, spoken: frozenset[int], shelter: _Shelter) -> str:
        parts: list[str] = []  # plain and spoken stretches in turn
        at, stretch = 0, ""
        for start, end, token in self._tokenizer.find_control(text):
            start, end = _without_space(text, start, end)
            stretch += text[at:start]
            if token in spoken:
                parts += [stretch, text[start:end]]
                stretch = ""
            else:
                stretch += shelter.char_of(text[start:end])
            at = end
        parts.append(stretch + text[at:])
        return "".join(part if n % 2 else self._hide_ends(part, shelter) for n, part in enumerate(parts))

    def _hide_ends(self, text: str, shelter: _Shelter) -> str:
        """Pieces of control tokens at the ends of a text, or of what is left of it without outer space."""
        core = text.strip()
        at = text.find(core)
        before, after = text[:at], text[at + len(core) :]
        most = min(self._longest, len(core))
        head = next((core[:n] for n in range(most, 0, -1) if core[:n] in self._ends), "")
        core = core[len(head) :]
        tail = next((core[-n:] for n in range(min(most, len(core)), 0, -1) if core[-n:] in self._starts), "")
        core = core[: len(core) - len(tail)]
        return before + shelter.char_of(head) + core + shelter.char_of(tail) + after


class Guarded:
    """Messages for a template, and the way from what it renders of them to ids."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]],
        hidden: dict[str, str],
    ) -> None:
        self._tokenizer, self.messages, self.tools = tokenizer, messages, tools
        self._original = hidden
        self._marks = re.compile("|".join(map(re.escape, hidden))) if hidden else None

    def ids(self, rendered: str) -> Ids:
        """Ids [n] of what the template rendered."""
        if self._marks is None or not self._marks.search(rendered):
            return self._tokenizer.encode_control(rendered)
        return self._tokenizer.encode_parts(self._parts(rendered))

    def ids_behind(self, rendered: str, place: int) -> Ids:
        """The ids of the characters from ``place`` on, as they are in the whole."""
        whole, head = self.ids(rendered), self.ids(rendered[:place])
        if np.array_equal(whole[: len(head)], head):
            return whole[len(head) :]
        # A token lies across the place: it is made of two there.
        before = self._parts(rendered[:place])
        whole = self._tokenizer.encode_parts([*before, SEAM, *self._parts(rendered[place:])])
        return whole[len(self._tokenizer.encode_parts(before)) :]

    def _parts(self, rendered: str) -> list[str | int]:
        spans = self._tokenizer.find_control(rendered)
        edges = [0, *itertools.chain.from_iterable((start, end) for start, end, _ in spans), len(rendered)]
        texts = [self._restored(rendered[a:b]) for a, b in zip(edges[::2], edges[1::2], strict=True)]
        parts: list[str | int] = [texts[0]]
        for span, text in zip(spans, texts[1:], strict=True):
            parts += [span.id, text]
        return parts

    def _restored(self, text: str) -> str:
        return text if self._marks is None else self._marks.sub(lambda found: self._original[found[0]], text)


class _Shelter:
    """Private characters, one for each text that is hidden."""

    def __init__(self, free: Iterator[str]) -> None:
        self._free = free
        self._char: dict[str, str] = {}

    def char_of(self, text: str) -> str:
        """The character that stands for a text; "" for none."""
        if not text:
            return ""
        if text not in self._char:
            self._char[text] = next(self._free)
        return self._char[text]

    @property
    def hidden(self) -> dict[str, str]:
        """Character -> text."""
        return {char: text for text, char in self._char.items()}


def _texts(*values: Any) -> Iterator[str]:
    """All texts in nested values."""
    for value in values:
        match value:
            case str():
                yield value
            case dict():
                yield from _texts(*value.keys(), *value.values())
            case list() | tuple():
                yield from _texts(*value)
            case ToolCall():
                yield from _texts(value.id, value.name, value.arguments, arguments_of(value))


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """A nested value with all of its texts changed."""
    match value:
        case str():
            return change(value)
        case dict():
            return {_mapped(key, change): _mapped(one, change) for key, one in value.items()}
        case list():
            return [_mapped(one, change) for one in value]
    return value


def _without_space(text: str, start: int, end: int) -> tuple[int, int]:
    core = text[start:end].strip()
    start = text.index(core, start)
    return start, start + len(core)


def common(a: Iterable[int], b: Iterable[int]) -> int:
    """How many ids two sequences begin with alike."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))

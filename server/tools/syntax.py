"""How a model writes calls of tools: learnt from what its chat template makes of a made-up conversation."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class CallSyntax:
    """The text of a reply's calls: begin, a call, (between, a call)*, end.

    A call is head, its name, mid, its arguments, tail; where a tail has two parts, the call's id stands between them.
    between: None where a reply holds one call. comma, colon: separators of the arguments' JSON.
    """

    begin: str
    head: str
    mid: str
    tail: tuple[str, ...]
    between: str | None
    end: str
    comma: str = ", "
    colon: str = ": "

    @property
    def listed(self) -> bool:
        """The calls are a JSON array behind one tag."""
        return self.begin.rstrip().endswith("[")

    @property
    def tag(self) -> str:
        """What opens a call, or all of them; "" where a call is bare JSON that begins the reply."""
        opening = self.begin.rstrip()
        return (opening[:-1] if self.listed else opening).strip()

    @property
    def closing(self) -> str:
        """What closes it; "" where nothing but JSON does."""
        return "" if self.listed else self.end.strip()

    def write(self, calls: list[tuple[str, str, Any]]) -> str:
        """Calls (id, name, arguments) as the model would write them."""
        parts = [self._one(*call) for call in calls]
        return self.begin + (self.between or "").join(parts) + self.end

    def _one(self, call_id: str, name: str, arguments: Any) -> str:
        body = json.dumps(arguments, ensure_ascii=False, separators=(self.comma, self.colon))
        return f"{self.head}{name}{self.mid}{body}{call_id.join(self.tail)}"


HERMES = CallSyntax(
    begin="<tool_call>\n",
    head='{"name": "',
    mid='", "arguments": ',
    tail=("}",),
    between="\n</tool_call>\n<tool_call>\n",
    end="\n</tool_call>",
)
"""What models are told whose templates know no tools, or write calls in a way that is not read here."""


Pair = tuple[str, str]


def learn(one: str, two: str | None, names: Pair, ids: Pair, values: Pair) -> CallSyntax:
    """The syntax of rendered replies with one call and with two, None if there can't be two. ValueError if it is none
    of those that are read here.

    Each call's arguments are {its value: [1, its place]}; names, ids and values stand nowhere else.
    """
    begin, head, mid, rest, comma, colon = _first(one, names[0], values[0])
    tail, end = _split_tail(rest, ids[0])
    between = None
    if two is not None:
        at = two.index(head + names[1])
        _, _, _, behind, _, _ = _first(two, names[0], values[0])
        first_tail = ids[0].join(tail)
        if not behind.startswith(first_tail):
            raise ValueError("the first of two calls ends otherwise than a single one")
        start = len(two) - len(behind) + len(first_tail)
        between = two[start:at]
    syntax = CallSyntax(begin, head, mid, tail, between, end, comma, colon)
    wanted = [(ids[0], names[0], {values[0]: [1, 0]})]
    if syntax.write(wanted) != one:
        raise ValueError("calls are written in a way that is not read here")
    wanted.append((ids[1], names[1], {values[1]: [1, 1]}))
    if two is not None and syntax.write(wanted) != two:
        raise ValueError("several calls are written in a way that is not read here")
    return syntax


def _first(text: str, name: str, value: str) -> tuple[str, str, str, str, str, str]:
    """(begin, head, mid, what follows the arguments, comma, colon) of the first call in a text."""
    at = text.index(name)
    start = text.rindex("{", 0, at)
    inside = text.index("{", at + len(name))
    arguments, end = json.JSONDecoder().raw_decode(text, inside)
    if list(arguments) != [value]:
        raise ValueError("the arguments of a call are no JSON object")
    body, listed = text[inside:end], text.index("[", inside, end) - inside
    colon = body[body.index('"', 2) + 1 : listed]
    comma = body[body.index("1", listed) + 1 : body.rindex("0")]
    mid = text[at + len(name) : inside]
    # The object begins with the name's key and goes on with that of the arguments.
    if set(json.loads(text[start:at] + name + mid + "{}}")) not in ({"name", "arguments"}, {"name", "parameters"}):
        raise ValueError("a call is no JSON object of a name and arguments")
    return text[:start], text[start:at], mid, text[end:], comma, colon


def _split_tail(rest: str, call_id: str) -> tuple[tuple[str, ...], str]:
    """(what closes a call's object, what is behind it)."""
    close = rest.index("}") + 1
    return tuple(rest[:close].split(call_id)), rest[close:]

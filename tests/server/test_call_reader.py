"""Calls of tools in a model's words: found however the text comes, and nothing of it is lost."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from server.streaming.pieces import CallArguments, CallEnd, CallStart, Piece, TextPiece
from server.tools.reader import CallReader
from server.tools.syntax import HERMES, CallSyntax

LLAMA = CallSyntax("", '{"name": "', '", "parameters": ', ("}",), None, "")
MISTRAL = CallSyntax("[TOOL_CALLS] [", '{"name": "', '", "arguments": ', (', "id": "', '"}'), ", ", "]", colon=": ")
SYNTAXES = {"hermes": HERMES, "llama": LLAMA, "mistral": MISTRAL}
NAMES = ["look", "add_up"]
Call = tuple[str, str]


def reader(kind: str) -> CallReader:
    return CallReader(SYNTAXES[kind], NAMES, "call_{}".format, ["<|python_tag|>"] if kind == "llama" else [])


def read(kind: str, parts: list[str], *, cut: bool = False) -> tuple[list[str | Call], list[Piece]]:
    """(texts and calls in order, as one would join the pieces; the pieces)."""
    one = reader(kind)
    pieces = [piece for part in parts for piece in one.feed(part)] + one.end(cut=cut)
    joined: list[str | Call] = []
    open_call: tuple[int, str, str] | None = None
    for piece in pieces:
        match piece:
            case TextPiece(text):
                assert open_call is None
                assert text
                if joined and isinstance(joined[-1], str):
                    joined[-1] += text
                else:
                    joined.append(text)
            case CallStart(index, call_id, name):
                assert open_call is None
                assert call_id == f"call_{index}"
                open_call = (index, name, "")
            case CallArguments(index, fragment):
                assert open_call is not None
                assert open_call[0] == index
                open_call = (*open_call[:2], open_call[2] + fragment)
            case CallEnd(index):
                assert open_call is not None
                joined.append(open_call[1:])
                open_call = None
    assert open_call is None
    return joined, pieces


CASES: list[tuple[str, str, list[str | Call]]] = [
    ("hermes", "Just words < no call\n", ["Just words < no call\n"]),
    ("hermes", '<tool_call>\n{"name": "look", "arguments": {"a": "}"}}\n</tool_call>', [("look", '{"a": "}"}')]),
    (
        "hermes",
        'First.\n\n<tool_call>{"name":"look","arguments":{}}</tool_call>\n<tool_call>\n'
        '{"arguments": {"b": [1]}, "name": "add_up"}\n</tool_call>\nThen.',
        ["First.", ("look", "{}"), ("add_up", '{"b": [1]}'), "\nThen."],
    ),
    ("hermes", "<tool_call>\noops</tool_call>", ["<tool_call>\noops</tool_call>"]),
    (
        "hermes",
        '<tool_call>\n{"name": "never", "arguments": {}}\n</tool_call> x',
        ['<tool_call>\n{"name": "never", "arguments": {}}\n</tool_call> x'],
    ),
    ("hermes", '<tool_call> <tool_call>{"name": "look"}', ["<tool_call> ", ("look", "{}")]),
    ("hermes", '<tool_call>\n{"name": "look", "arguments": {"a": "cut', [("look", '{"a": "cut')]),
    ("hermes", '<tool_call>\n{"name": "look", "arguments": {"a": oops}}', [("look", '{"a": '), "oops}}"]),
    ("hermes", '<tool_call>\n{"name": "lo', ['<tool_call>\n{"name": "lo']),
    ("hermes", 'a <tool_call>\n{"name": "look", "arguments": "{\\"q\\": 1}"}</tool_call>', ["a", ("look", '{"q": 1}')]),
    ("llama", '{"name": "look", "parameters": {"a": 1}}', [("look", '{"a": 1}')]),
    ("llama", '\n<|python_tag|>{"name": "look", "parameters": {}}; {"name": "add_up", "parameters": {"x": "\\""}}',
     [("look", "{}"), ("add_up", '{"x": "\\""}')]),
    ("llama", '{"answer": {"name": "look"}}', ['{"answer": {"name": "look"}}']),
    ("llama", '{"name": "Ada", "parameters": {}}', ['{"name": "Ada", "parameters": {}}']),
    ("llama", 'It is {"name": "look", "parameters": {}}', ['It is {"name": "look", "parameters": {}}']),
    ("llama", "  ", ["  "]),
    ("mistral", 'Well [TOOL_CALLS] [{"name": "look", "arguments": {"a": 1}, "id": "abcdefghi"}, '
     '{"name": "add_up", "arguments": {}, "id": "012345678"}]', ["Well", ("look", '{"a": 1}'), ("add_up", "{}")]),
    ("mistral", "[TOOL_CALLS] look{}", ["[TOOL_CALLS] look{}"]),
    ("mistral", "[TOOL_CALLS]", ["[TOOL_CALLS]"]),
    ("mistral", "[TOOL_C", ["[TOOL_C"]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "text", "wanted"), CASES)
def test_what_a_text_holds(kind: str, text: str, wanted: list[str | Call]) -> None:
    """Calls of known tools are told as such, with the text around them; anything else stays text, whole."""
    assert read(kind, [text])[0] == wanted


CUT: list[tuple[str, str, list[str | Call]]] = [
    ("hermes", "<tool", ["<tool"]),
    ("hermes", "Well <tool_call>", ["Well"]),
    ("hermes", '<tool_call>\n{"na', []),
    (
        "hermes",
        '<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>\n<tool_call>\n{"name": "lo',
        [("look", "{}")],
    ),
    ("hermes", '<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>\n<too', [("look", "{}")]),
    ("hermes", '<tool_call>\n{"name": "look", "arguments": {}}\n</too', [("look", "{}")]),
    ("hermes", '<tool_call>\n{"name": "look", "arguments": {"a": "cut', [("look", '{"a": "cut')]),
    ("hermes", "a < b and so", ["a < b and so"]),
    ("llama", '{"name": "look", "parameters": {}}; {"na', [("look", "{}")]),
    ("llama", '<|python_tag|>{"name": "l', []),
    ("llama", '{"name": "Ad', ['{"name": "Ad']),
    ("mistral", '[TOOL_CALLS] [{"name": "look", "arguments": {}, "id": "abcdefghi"}, {"name": "ad', [("look", "{}")]),
    ("mistral", "[TOOL_CALLS]", []),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "text", "wanted"), CUT)
def test_of_a_reply_that_was_cut_no_half_of_a_call_is_text(kind: str, text: str, wanted: list[str | Call]) -> None:
    """Law: where a reply is cut in front of a call's arguments, its markup is told to nobody, however it came; text
    that only looks like a beginning stays."""
    assert read(kind, [text], cut=True)[0] == wanted
    assert read(kind, list(text), cut=True)[0] == wanted


def test_of_a_reply_that_must_call_half_a_tag_is_no_text() -> None:
    """Where nothing but calls may be written, whatever was cut is the beginning of one."""
    one = CallReader(HERMES, NAMES, "call_{}".format, demanded=True)
    assert [*one.feed("<tool_ca"), *one.end(cut=True)] == []


MARKS = [
    *("<tool_call>", "</tool_call>", "\n", " ", "[TOOL_CALLS]", "[", "]", ",", "{", "}", '"', "\\", ":", ";", "x", "1"),
    *('"name"', '"look"', '"arguments": {', '{"name": "look", "arguments": {"a": "b"}}', '"parameters": '),
    "<|python_tag|>",
    *('{"name": "add_up", "parameters": {"n": [1, {"m": 2}]}}', "<tool", "_call>", '{"name": "look", "arguments": {'),
]  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(sorted(SYNTAXES)),
    st.lists(st.sampled_from(MARKS), max_size=14).map("".join),
    st.lists(st.integers(0, 200), max_size=8),
)
@example("hermes", 'a \n<tool_call>{"name": "look", "arguments": {}}</tool_call> \n', [1, 2, 3, 40])
def test_no_split_changes_what_is_found(kind: str, text: str, cuts: list[int]) -> None:
    """However a text is cut, and character by character, the same texts and calls come out."""
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    whole = read(kind, [text])[0]
    assert read(kind, [text[a:b] for a, b in itertools.pairwise(edges)])[0] == whole
    assert read(kind, list(text))[0] == whole


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(SYNTAXES)), st.lists(st.sampled_from(MARKS), max_size=14).map("".join))
def test_nothing_that_is_no_call_is_lost(kind: str, text: str) -> None:
    """A text in which no call is found comes out as it went in."""
    joined = read(kind, [text])[0]
    if all(isinstance(part, str) for part in joined):
        assert "".join(part for part in joined if isinstance(part, str)) == text


VALUES = st.text(max_size=9) | st.integers() | st.lists(st.booleans())


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(sorted(SYNTAXES)),
    st.lists(
        st.tuples(
            st.sampled_from(NAMES),
            st.dictionaries(st.text(max_size=5), VALUES, max_size=3),
        ),
        min_size=1,
        max_size=3,
    ),
)
def test_what_a_template_writes_is_read(kind: str, calls: list[tuple[str, dict[str, object]]]) -> None:
    """Calls as the syntax writes them are found, with exactly their arguments."""
    syntax = SYNTAXES[kind]
    calls = calls if syntax.between is not None else calls[:1]
    text = syntax.write([(f"{place:09}", name, arguments) for place, (name, arguments) in enumerate(calls)])
    joined, _ = read(kind, list(text))
    assert [(part[0], json.loads(part[1])) for part in joined] == calls


def test_arguments_are_told_as_they_come() -> None:
    """A long argument is not held back until its call is whole."""
    one = reader("hermes")
    one.feed('<tool_call>\n{"name": "look", "arguments": {"text": "')
    assert one.feed("and on it goes") == [CallArguments(0, "and on it goes")]

"""Server-sent events, by the standard."""

from __future__ import annotations

import json
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from clients.megacontext_client.sse import Event, EventDecoder

BODY = (
    "\ufeff: keep-alive\n\n"
    'data: {"text": "a\u2028b\x85c \U0001f433"}\n\n'
    "event: error\r\ndata: one\r\ndata:two\r\n\r\n"
    "id: 7\rretry: 10\rdata:  padded\r\r"
    "event: nothing\n\n"
    "data\n\n"
    "data: [DONE]\n\n"
    "data: cut off"
).encode()
EVENTS = [
    Event("message", '{"text": "a\u2028b\x85c \U0001f433"}'),
    Event("error", "one\ntwo"),
    Event("message", " padded", "7"),
    Event("message", "", "7"),
    Event("message", "[DONE]", "7"),
]


def test_a_whole_body() -> None:
    """Law: comments and unknown fields are skipped, CR, LF and CRLF end lines, an unfinished event never appears, and
    an id is that of all events until the next one."""
    assert EventDecoder().feed(BODY) == EVENTS


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, len(BODY)), max_size=30))
def test_cuts_change_nothing(cuts: list[int]) -> None:
    """Law: the events are the same wherever the network cuts the body, within a character or a CRLF too."""
    decoder, edges = EventDecoder(), [0, *sorted(cuts), len(BODY)]
    events = [event for a, b in pairwise(edges) for event in decoder.feed(BODY[a:b])]
    assert events == EVENTS


@settings(max_examples=50, deadline=None)
@given(st.text(), st.integers(1, 7))
def test_any_json_string_survives(text: str, size: int) -> None:
    """Law: whatever a chunk's text holds, it comes out as it went in."""
    body = f"data: {json.dumps(text, ensure_ascii=False)}\n\n".encode("utf-8", "replace")
    decoder = EventDecoder()
    events = [event for i in range(0, len(body), size) for event in decoder.feed(body[i : i + size])]
    assert [json.loads(event.data) for event in events] == [text.encode("utf-8", "replace").decode()]

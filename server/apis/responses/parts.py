"""Which items the messages of a turn are told as, so that lists of a conversation call them as its responses do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from server.apis.responses.stored import Told
from server.streaming.pieces import CallEnd, CallStart, TextPiece
from server.turns.parts import Part, Parts


def parts_given(items: Sequence[Mapping[str, Any]]) -> list[Parts]:
    """Of the messages that items become (``messages_of``), oldest first; the items as they are listed."""
    messages: list[list[Part]] = []
    open_for_calls = False
    for item in items:
        match item["type"]:
            case "function_call":
                if not open_for_calls:
                    messages.append([])
                messages[-1].append(Part(item["id"]))
                open_for_calls = True
            case "message":
                size = sum(len(part["text"]) for part in item["content"])
                messages.append([Part(item["id"], size)])
                open_for_calls = item["role"] == "assistant"
            case _:
                messages.append([Part(item["id"])])
                open_for_calls = False
    return [tuple(message) for message in messages]


def parts_told(told: Sequence[Told], stem: str, *, cut: bool) -> Parts:
    """Of a reply, as the output of its response has them. cut: it ended at the longest that was asked for."""
    sizes: list[tuple[str, int]] = []
    words = ended = False
    for piece, logprobs in told:
        match piece:
            case TextPiece(text) if text or logprobs:
                sizes = [*sizes[:-1], ("msg", sizes[-1][1] + len(text))] if words else [*sizes, ("msg", len(text))]
                words, ended = True, False
            case CallStart():
                sizes.append(("fc", 0))
                words = ended = False
            case CallEnd():
                ended = True
    if not sizes:
        sizes = [("msg", 0)]
    last = len(sizes) - 1
    return tuple(
        Part(f"{kind}_{stem}o{place}", size, cut and not ended and place == last)
        for place, (kind, size) in enumerate(sizes)
    )

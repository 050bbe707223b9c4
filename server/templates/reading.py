"""How a model's own template tells it what the places of a long history are (``mc_core.context.excerpts``)."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from functools import lru_cache
from typing import get_args

import numpy as np

from mc_core.context.reading_format import MessageKind, ReadingFormat
from mc_core.context.sources import About, TextKind
from mc_core.kv.layout import FRAME_BITS
from mc_core.models.tokenizer import Ids, Tokenizer
from server.errors import ApiError
from server.templates.chat_template import ChatTemplate
from server.templates.messages import Message

INTRODUCTIONS = {
    "document": "Use the following text{title} to answer the question.\n\n",
    "chat": "Use the following conversation{title} to answer the question.\n\n",
}
"""Before ingested text, by its kind. The first was measured with SmolLM2-135M-Instruct (docs/reading.md): of the
wordings tried, the one by which most questions were answered. The second differs in what it calls the text."""
GAP = "\n...\n"
LONGEST_TITLE = 32
"""Tokens that are shown of a title: frames have little room."""
TITLE_FRAME = 8
"""Tokens that stand around a title at most: a blank, brackets, and what tells that it was cut."""
KNOWN_TITLES = 4096


def reading_format(template: ChatTemplate, tokenizer: Tokenizer) -> ReadingFormat | None:
    """The frames of a model; None where its template does not open and close messages with control tokens."""
    for names in (("system", "user", "assistant", "user"), ("user", "assistant", "user")):
        try:
            format = _learn(template, tokenizer, names)
        except ApiError:
            continue
        if format is not None:
            return format
    return None


def _learn(template: ChatTemplate, tokenizer: Tokenizer, names: Sequence[str]) -> ReadingFormat | None:
    """By what the template writes around messages of these roles, the last two of which are as the first ones are."""
    before = template.around([Message(name, secrets.token_hex(8)) for name in names])
    controls = [np.flatnonzero(np.isin(ids, sorted(tokenizer.control_ids))) for ids in before]
    # A message is closed by one control token, and the next one opened by another.
    if not len(controls[0]) or any(len(at) < 2 or at[0] != 0 for at in controls[1:]):
        return None
    closings = [ids[: at[1]] for ids, at in zip(before[1:], controls[1:], strict=True)]
    openings = [ids[at[1] :] for ids, at in zip(before[1:], controls[1:], strict=True)]
    same = np.flatnonzero(before[0] == openings[0][0])
    begin = int(same[-1] if len(same) else controls[0][-1])
    openings.insert(0, before[0][begin:])
    if not np.array_equal(openings[-1], openings[-3]):
        return None
    kinds = tuple(
        MessageKind(name, opening, closing, _mark(opening, tokenizer))
        for name, opening, closing in zip(names, openings, closings, strict=False)
    )
    asking = kinds[names.index("user")]

    @lru_cache(KNOWN_TITLES)
    def texts(about: About) -> MessageKind:
        introduction = tokenizer.encode_more(_introduction(about, tokenizer))
        return MessageKind("text", np.concatenate([asking.opening, introduction]), asking.closing, asking.mark)

    format = ReadingFormat(kinds, texts, tokenizer.encode_more(GAP), begin)
    return format if _longest(format) < 1 << FRAME_BITS else None


def _introduction(about: About, tokenizer: Tokenizer) -> str:
    title = "" if about.title is None else f" ({_shortened(about.title, tokenizer)})"
    return INTRODUCTIONS[about.kind].format(title=title)


def _shortened(title: str, tokenizer: Tokenizer) -> str:
    """As much of a title as its frame has room for."""
    shown = title
    while (size := len(tokenizer.encode_more(shown))) > LONGEST_TITLE:
        shown = title[: len(shown) * LONGEST_TITLE // (size + 1)]
    return shown if shown == title else f"{shown.rstrip()}..."


def _longest(format: ReadingFormat) -> int:
    """Tokens of the longest frame: one that closes a message and opens a text with a title."""
    texts = [len(format.texts(About(None, kind)).opening) for kind in get_args(TextKind)]
    openings = [*(len(kind.opening) for kind in format.kinds), *(size + LONGEST_TITLE + TITLE_FRAME for size in texts)]
    return max(openings) + max(len(kind.opening) + len(kind.closing) for kind in format.kinds)


def _mark(opening: Ids, tokenizer: Tokenizer) -> int:
    """Tokens of an opening that tell which it is: up to its last control token, or without a second one up to the last
    token that is no white space. Behind a second one templates write what changes, such as today's date."""
    controls = np.flatnonzero(np.isin(opening, sorted(tokenizer.control_ids)))
    if len(controls) > 1:
        return int(controls[-1]) + 1
    size = len(opening)
    while size > 1 and not tokenizer.decode(opening[size - 1 : size], skip_special_tokens=False).strip():
        size -= 1
    return size

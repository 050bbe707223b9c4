"""How a model's own template tells it what the places of a long history are (``mc_core.context.frames``)."""

from __future__ import annotations

import secrets

import numpy as np

from mc_core.context.frames import MessageKind, ReadingFormat
from mc_core.models.tokenizer import Ids, Tokenizer
from server.chat_template import ChatTemplate
from server.errors import ApiError
from server.messages import Message

INTRODUCTION = "Use the following text to answer the question.\n\n"
"""Before ingested text. Measured with SmolLM2-135M-Instruct (docs/reading.md): of the wordings tried, the one by which
most questions were answered."""
GAP = "\n...\n"


def reading_format(template: ChatTemplate, tokenizer: Tokenizer) -> ReadingFormat | None:
    """The frames of a model; None where its template does not open and close messages with control tokens."""
    try:
        return _learn(template, tokenizer)
    except ApiError:
        return None


def _learn(template: ChatTemplate, tokenizer: Tokenizer) -> ReadingFormat | None:
    names = ("system", "user", "assistant", "user")
    before = template.around([Message(name, secrets.token_hex(8)) for name in names])
    controls = [np.flatnonzero(np.isin(ids, sorted(tokenizer.control_ids))) for ids in before]
    # A message is closed by one control token, and the next one opened by another.
    if not len(controls[0]) or any(len(at) < 2 or at[0] != 0 for at in controls[1:]):
        return None
    openings = [ids[at[1] :] for ids, at in zip(before[1:], controls[1:], strict=True)]
    closings = [ids[: at[1]] for ids, at in zip(before[1:], controls[1:], strict=True)]
    same = np.flatnonzero(before[0] == openings[0][0])
    begin = int(same[-1] if len(same) else controls[0][-1])
    kinds = tuple(
        MessageKind(name, opening, closing, _mark(opening, tokenizer))
        for name, opening, closing in zip(names[:3], [before[0][begin:], *openings], closings, strict=False)
    )
    if not np.array_equal(openings[0], openings[2]):
        return None
    asking = kinds[1]
    introduction = np.concatenate([asking.opening, tokenizer.encode(INTRODUCTION)])
    text = MessageKind("text", introduction, asking.closing, asking.mark)
    return ReadingFormat(kinds, text, tokenizer.encode(GAP), begin)


def _mark(opening: Ids, tokenizer: Tokenizer) -> int:
    """Tokens of an opening up to its last one that is no white space."""
    size = len(opening)
    while size > 1 and not tokenizer.decode(opening[size - 1 : size], skip_special_tokens=False).strip():
        size -= 1
    return size

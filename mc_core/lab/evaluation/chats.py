"""Long chats by the model's own template, whose first turns tell what is asked for at the end."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from mc_core.errors import ConfigError
from mc_core.lab.data.arrays import Ids, Range
from mc_core.lab.evaluation.prompt import Prompt, Turns
from mc_core.lab.tasks.filler import Filler
from mc_core.lab.tasks.history import History, Question
from mc_core.lab.tasks.plain import PASTED, Chat, Turn, chats, talk
from mc_core.models.tokenizer import Tokenizer

CHAT = "chat"
TURNS, TOKENS = 40, 7_000
"""Of a chat. It is about so many tokens long, most of them text that the user pastes."""
LEAST_PASTED = 32
"""Tokens of a pasted text, however much room the talk takes."""


def chat_histories(
    rng: Generator, tokenizer: Tokenizer, filler: Filler, prompt: Prompt, questions: int
) -> list[History]:
    """So many questions over as few chats as have them, in random order; all there are, if there are fewer."""
    found: list[History] = []
    written = chats()
    for i in rng.permutation(len(written)).tolist():
        if questions > 0:
            found.append(_history(rng, tokenizer, filler, prompt, written[i], questions))
            questions -= len(found[-1].questions)
    return found


def _history(
    rng: Generator, tokenizer: Tokenizer, filler: Filler, prompt: Prompt, chat: Chat, questions: int
) -> History:
    ids = prompt.chat(
        [*((told.turn.user, told.turn.assistant) for told in chat.told), *_talk(rng, tokenizer, filler, prompt, chat)]
    )
    spans = tuple(span_of(ids, told.statement.statement, tokenizer) for told in chat.told)
    asked = [
        Question(CHAT, CHAT, told.statement.asked, (i,), spans[i][0] / len(ids), i) for i, told in enumerate(chat.told)
    ]
    chosen = tuple(asked[i] for i in rng.permutation(len(asked))[:questions].tolist())
    return History(ids, spans, chosen, nominal=TOKENS)


def _talk(rng: Generator, tokenizer: Tokenizer, filler: Filler, prompt: Prompt, chat: Chat) -> Turns:
    """The turns behind those that tell: all that paste, and others, mixed."""
    pasting = [turn for turn in talk() if turn.pastes]
    others = [turn for turn in talk() if not turn.pastes]
    count = TURNS - len(chat.told) - len(pasting)
    chosen = [*pasting, *(others[i] for i in rng.permutation(len(others))[:count].tolist())]
    mixed = [chosen[i] for i in rng.permutation(len(chosen)).tolist()]
    bare = prompt.chat([(turn.user, turn.assistant) for turn in (*(told.turn for told in chat.told), *mixed)])
    return _pasted(rng, tokenizer, filler, mixed, TOKENS - len(bare))


def _pasted(rng: Generator, tokenizer: Tokenizer, filler: Filler, turns: list[Turn], room: int) -> Turns:
    """The turns with passages in those that paste, which share ``room`` tokens."""
    left = sum(turn.pastes for turn in turns)
    said: list[tuple[str, str]] = []
    for turn in turns:
        user = turn.user
        if turn.pastes:
            passage = filler.passage(rng, max(room // left, LEAST_PASTED))
            user = user.replace(PASTED, tokenizer.decode(passage).strip())
            room, left = room - len(passage), left - 1
        said.append((user, turn.assistant))
    return said


def span_of(ids: Ids, text: str, tokenizer: Tokenizer) -> Range:
    """The tokens that hold a text's first occurrence; ConfigError if it is not there."""
    parts = [tokenizer.token_bytes(token) for token in ids.tolist()]
    places = np.cumsum([0, *map(len, parts)])
    at = b"".join(parts).find(text.encode())
    if at < 0:
        raise ConfigError(f"the model's chat template changes what a user says: {text!r} is not in the chat")
    return int(np.searchsorted(places, at, "right")) - 1, int(np.searchsorted(places, at + len(text.encode())))

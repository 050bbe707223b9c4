"""What a reply stood on: the places of the history that its tokens paid attention to, and how much of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mc_core.kv.attention_ledger import AttentionLedger
from mc_core.kv.layout import LEVEL_SHIFT
from mc_core.models.tokenizer import Tokenizer
from mc_core.session.session import Session

MOST_PLACES = 20
PLACE_BLOCKS = 8
"""A place is neighbouring blocks of one message or text, and no longer than so many: where all is shown, one looks for
the passage and not for the book."""
TEXT_START = 160
"""Characters that are told of a place's text."""
Ints = NDArray[np.int64]
Shares = NDArray[np.float64]


@dataclass(frozen=True)
class Place:
    """Tokens [start, end) that stood raw, and the share of its attention that the reply paid them.

    role: of the message that they are of, None for text of no message, or where messages are not told apart; message:
    its tokens. title: of the text. text_start: how they begin, None if their ids have left memory.
    """

    start: int
    end: int
    share: float
    role: str | None = None
    message: tuple[int, int] | None = None
    title: str | None = None
    text_start: str | None = None


@dataclass(frozen=True)
class Rest:
    """What was paid to all else: this turn's own tokens, the newest ones before it, the first token of all, on which
    models rest their gaze, frames, gists, and places beyond those that are listed."""

    turn: float = 0.0
    tail: float = 0.0
    sink: float = 0.0
    frames: float = 0.0
    gists: float = 0.0
    others: float = 0.0


@dataclass(frozen=True)
class Provenance:
    """The places best paid first; their shares and the rest sum to 1."""

    sources: tuple[Place, ...]
    rest: Rest


def provenance(ledger: AttentionLedger, session: Session, tokenizer: Tokenizer, turn: int, tail: int) -> Provenance:
    """turn: where this turn began in the history; tail: where the newest tokens began that always stand."""
    identity, shares = ledger.shares()
    levels = identity >> LEVEL_SHIFT
    raw = levels == 0
    tokens, paid = identity[raw], shares[raw]
    own, newest, first = tokens >= turn, (tokens >= tail) & (tokens < turn), tokens == 0
    first &= ~own & ~newest
    stands = ~(own | newest | first)
    by_time = np.flatnonzero(stands)[np.argsort(tokens[stands])]
    sources, others = _places(session, tokenizer, tokens[by_time], paid[by_time])
    rest = Rest(
        turn=float(paid[own].sum()),
        tail=float(paid[newest].sum()),
        sink=float(paid[first].sum()),
        frames=float(shares[levels < 0].sum()),
        gists=float(shares[levels > 0].sum()),
        others=others,
    )
    return Provenance(sources, rest)


def _places(session: Session, tokenizer: Tokenizer, tokens: Ints, paid: Shares) -> tuple[tuple[Place, ...], float]:
    """The best paid places of these tokens, ascending, and what the others were paid together."""
    if not len(tokens):
        return (), 0.0
    group = session.block_size * PLACE_BLOCKS
    begins = np.ones(len(tokens), bool)
    begins[1:] = (np.diff(tokens) != 1) | (np.diff(tokens // group) != 0)
    begins |= np.isin(tokens, _borders(session, tokens))
    first = np.flatnonzero(begins)
    last = np.append(first[1:], len(tokens)) - 1
    share = np.add.reduceat(paid, first)
    best = np.argsort(-share, kind="stable")[:MOST_PLACES]
    places = tuple(
        _place(session, tokenizer, int(tokens[first[row]]), int(tokens[last[row]]) + 1, float(share[row]))
        for row in best.tolist()
    )
    return places, float(share.sum() - share[best].sum())


def _borders(session: Session, tokens: Ints) -> Sequence[int]:
    """Where messages and texts begin or end among the tokens."""
    cuts = np.flatnonzero(np.diff(tokens) != 1)
    borders: list[int] = []
    for start, end in zip(
        tokens[np.append(0, cuts + 1)].tolist(), tokens[np.append(cuts, len(tokens) - 1)].tolist(), strict=True
    ):
        borders += session.sources.starts(start, end)
        if session.excerpts is not None:
            borders += session.excerpts.messages.borders(start, end)
    return borders


def _place(session: Session, tokenizer: Tokenizer, start: int, end: int, share: float) -> Place:
    message = None if session.excerpts is None else session.excerpts.messages.message(start)
    role, bounds = (None, None) if message is None else (message[0], (message[1], message[2]))
    title = session.sources.about(session.sources.number(start)).title if message is None else None
    return Place(start, end, share, role, bounds, title, _text_start(session, tokenizer, start, end))


def _text_start(session: Session, tokenizer: Tokenizer, start: int, end: int) -> str | None:
    end = min(end, start + TEXT_START, session.tokens)
    blocks = np.arange(start // session.block_size, min(-(-end // session.block_size), session.tree.num_blocks))
    if start >= end or len(session.tree.missing(blocks)):
        return None
    return tokenizer.decode(session.tree.ids(start, end), skip_special_tokens=False)[:TEXT_START]

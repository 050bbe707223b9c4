"""What will be sent, and when: decided by the settings and the seed before anything is sent."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from clients.load.settings import LoadSettings
from clients.load.trace import conversations, read_trace


@dataclass(frozen=True)
class TurnPlan:
    """One turn. ``at``: seconds after the start when it is due; None: ``think`` seconds after the turn before it.

    leaves_after: pieces of the reply after which the client goes away; None: it stays.
    """

    number: int
    prompt_tokens: int
    output_tokens: int
    at: float | None = None
    think: float = 0.0
    leaves_after: int | None = None


@dataclass(frozen=True)
class SessionPlan:
    """A conversation, and the history that it has before its first turn: a document, generated tokens, or both."""

    key: str
    turns: tuple[TurnPlan, ...]
    history_tokens: int = 0
    document: Path | None = None


def make_plan(settings: LoadSettings) -> list[SessionPlan]:
    """The conversations of a run; the same settings give the same plan. TraceError for an unreadable trace."""
    return _from_trace(settings) if settings.trace is not None else _generated(settings)


def warm_up_plan(settings: LoadSettings) -> list[SessionPlan]:
    """Short conversations of one turn each."""
    rng = random.Random(f"warm-up {settings.seed}")
    return [
        SessionPlan(
            f"warm-up {i}", (TurnPlan(0, settings.prompt_tokens.tokens(rng), settings.output_tokens.tokens(rng)),)
        )
        for i in range(settings.warm_up)
    ]


def arrival_times(settings: LoadSettings) -> Iterator[float]:
    """Endless due times of an open loop, in seconds: one every 1 / rate, or a Poisson process of that rate."""
    rate = settings.rate
    if rate is None:
        raise ValueError("a closed loop has no arrivals")
    if settings.arrivals == "constant":
        return (i / rate for i in itertools.count())
    rng = random.Random(f"arrivals {settings.seed}")
    return itertools.accumulate((rng.expovariate(rate) for _ in itertools.count()), initial=0.0)


def _generated(settings: LoadSettings) -> list[SessionPlan]:
    """Session s has turns 0, 1, ...; in an open loop all sessions' first turns are due before any second one."""
    due: dict[tuple[int, int], float] = {}
    if settings.rate is not None:
        places = itertools.product(range(settings.turns), range(settings.sessions))
        due = {(session, turn): at for (turn, session), at in zip(places, arrival_times(settings), strict=False)}
    plans = []
    for session in range(settings.sessions):
        rng = random.Random(f"session {settings.seed} {session}")
        history = settings.history_tokens.tokens(rng) if settings.history_tokens else 0
        turns = [_turn(settings, rng, number, due.get((session, number))) for number in range(settings.turns)]
        plans.append(SessionPlan(f"{session}", _in_time(settings, turns), history, settings.ingest))
    return [plan for plan in plans if plan.turns]


def _turn(settings: LoadSettings, rng: random.Random, number: int, at: float | None) -> TurnPlan:
    prompt, output = settings.prompt_tokens.tokens(rng), settings.output_tokens.tokens(rng)
    think = settings.think_time.draw(rng) if number else 0.0
    return TurnPlan(number, prompt, output, at, think, _leaves_after(settings, rng, output))


def _from_trace(settings: LoadSettings) -> list[SessionPlan]:
    assert settings.trace is not None
    turns: dict[int, list[TurnPlan]] = defaultdict(list)
    for index, turn in enumerate(conversations(read_trace(settings.trace))):
        rng = random.Random(f"row {settings.seed} {index}")
        before = turns[turn.conversation]
        # A reply of no tokens can't be asked for.
        output = max(1, turn.row.output_tokens)
        leaves = _leaves_after(settings, rng, output)
        at = turn.row.at / settings.speed
        before.append(TurnPlan(len(before), turn.new_tokens, output, at, leaves_after=leaves))
    plans = [SessionPlan(f"{i}", _in_time(settings, rows)) for i, rows in sorted(turns.items())]
    return [plan for plan in plans if plan.turns]


def _leaves_after(settings: LoadSettings, rng: random.Random, output_tokens: int) -> int | None:
    """In the first half of the reply, whose text may come in fewer pieces than it has tokens."""
    leaves, place = rng.random() < settings.disconnect, rng.random()
    return 1 + int(place * output_tokens / 2) if leaves else None


def _in_time(settings: LoadSettings, turns: list[TurnPlan]) -> tuple[TurnPlan, ...]:
    """The turns that are due before the run's end; of a closed loop all, since their times show only as it runs."""
    end = settings.duration
    return tuple(turn for turn in turns if end is None or turn.at is None or turn.at < end)

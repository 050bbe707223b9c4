"""Who follows a session: the newest look alone waits, from whatever thread and however fast looks come."""

from __future__ import annotations

import asyncio
import threading

import numpy as np

from mc_core.context.working_context import WorkingContext
from mc_core.focus.reasons import Noted
from mc_core.session.look import Look
from server.apis.focus.format import rate
from server.live.follower import Follower, Seen
from server.live.followers import Followers


def look(tokens: int) -> Look:
    wc = WorkingContext(32, 4_096)
    wc.extend(tokens)
    return Look(wc.entries, wc.protection, wc.budget, 0.0, 0, 0, Noted({}, True), None)


async def test_a_slow_reader_gets_the_newest_alone() -> None:
    """However many looks come before it reads, one is kept and one call of the loop is made; then it waits again."""
    follower, calls = Follower(), 0
    loop = asyncio.get_running_loop()
    called = loop.call_soon_threadsafe

    def counted(*args: object) -> object:
        nonlocal calls
        calls += 1
        return called(*args)  # type: ignore[arg-type]

    loop.call_soon_threadsafe = counted  # type: ignore[assignment, method-assign]
    looks = [look(tokens) for tokens in range(1, 200)]
    engine = threading.Thread(target=lambda: [follower.put(Seen(one, "interval")) for one in looks])
    engine.start()
    engine.join()
    assert calls == 1
    seen = await follower.next(5)
    assert isinstance(seen, Seen)
    assert seen.look.tokens == 199
    assert await follower.next(0.01) is None
    follower.put(Seen(looks[0], "commit"))
    assert isinstance(await follower.next(5), Seen)


async def test_no_look_is_lost_between_two_reads() -> None:
    """A reader that reads while looks come always ends with the last one."""
    for _ in range(20):
        follower, looks = Follower(), [look(tokens) for tokens in range(1, 40)]
        engine = threading.Thread(target=lambda f=follower, ls=looks: [f.put(Seen(one, "interval")) for one in ls])
        engine.start()
        told = [0]
        while told[-1] != 39:
            seen = await follower.next(5)
            assert isinstance(seen, Seen)
            told.append(seen.look.tokens)
        engine.join()
        assert told == sorted(told)


async def test_what_was_seen_is_told_before_the_end() -> None:
    """An end does not swallow the look before it, and is told again and again."""
    followers = Followers()
    follower = followers.add("a")
    follower.put(Seen(look(5), "commit"))
    followers.gone("a")
    followers.gone("another")
    assert isinstance(await follower.next(5), Seen)
    assert [await follower.next(5), await follower.next(5)] == ["deleted", "deleted"]


async def test_who_is_not_followed_is_not_looked_at() -> None:
    """A look is taken only for sessions with followers, once for all of theirs."""
    followers, taken = Followers(), []

    def takes() -> Look:
        taken.append(1)
        return look(7)

    followers.moved("a", "commit", takes)
    one, two = followers.add("a"), followers.add("a")
    followers.moved("b", "commit", takes)
    assert not taken
    followers.moved("a", "commit", takes)
    assert len(taken) == 1
    followers.remove("a", one)
    followers.remove("a", one)
    assert len(followers) == 1
    followers.remove("a", two)
    followers.moved("a", "commit", takes)
    assert (len(followers), len(taken)) == (0, 1)


def test_the_rate_is_told_while_tokens_come() -> None:
    """Between two refocuses of a reply or two parts of an ingest, and at no other time."""
    at = {"turn": 10.0, "interval": 11.0, "commit": 12.0}
    turn, interval, commit = (Seen(look(int(32 * when)), moment, when) for moment, when in at.items())  # type: ignore[arg-type]
    assert rate(turn, None) is None
    assert rate(interval, turn) == 32.0
    assert rate(commit, interval) is None
    assert rate(turn, commit) is None
    assert np.isclose(rate(Seen(look(400), "ingest", 3.0), Seen(look(200), "ingest", 1.0)) or 0, 100.0)

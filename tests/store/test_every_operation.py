"""All that may be done to sessions, in any order, on either store, against plain lists of token ids."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from mc_core.bundle.bundle import Bundle, load_bundle
from mc_core.engine.core import build_core
from mc_core.engine.engine import Engine
from mc_core.engine.engine_config import EngineConfig
from mc_core.engine.requests import Delta, Event, Failed, Finished, Turn
from mc_core.errors import PinRoomError
from mc_core.focus.focus_config import FocusConfig
from mc_core.models.sampling_params import SamplingParams
from mc_core.session.factory import SessionFactory
from mc_core.session.session import Session
from server.futures import settled
from server.sessions.forks import fork_at
from server.sessions.host import SessionHost
from server.sessions.names import new_id
from server.transfer.checked import check
from server.transfer.snapshot import take
from store_harness import HARNESSES
from support import write_model

TENANT, MOST = "alice", 5
FOCUS = FocusConfig(budget=384, recent_tokens=64, hops=0)
CONFIG = EngineConfig(max_sessions=2, max_queue=2, hot_tokens=64)
"""So few hot tokens that most of a history is evicted, and fetched again."""
any_session, any_seed = st.integers(0, 99), st.integers(0, 1 << 20)


class Turned:
    """The sink of a turn: ids of its reply, and how it ended."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.end: Finished | Failed | None = None
        self.over = threading.Event()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Delta):
            self.ids += event.token_ids
        else:
            self.end = event
            self.over.set()


class Operations(RuleBasedStateMachine):
    """A host of sessions over one store, and by session the ids that it should hold."""

    kind: ClassVar[str]
    bundle: ClassVar[Bundle]
    steps: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        self.harness = HARNESSES[self.kind]()
        self.known: dict[str, np.ndarray] = {}
        self.loop = asyncio.new_event_loop()
        self.run = self.loop.run_until_complete
        self.start()

    def start(self) -> None:
        self.store = self.harness.open()
        self.engine = Engine(build_core(self.bundle, FOCUS, CONFIG, self.store))
        self.engine.start()
        factory = SessionFactory(self.bundle, FOCUS)
        self.host = SessionHost(
            factory, self.engine, self.store, model="tiny", max_resident=2, max_implicit=99, name="one"
        )

    def stop(self, handing_over: bool) -> None:
        """handing_over: with all leases given back; without, as a server ends that has no time for it."""
        self.run(asyncio.sleep(0))
        for task in asyncio.all_tasks(self.loop):
            self.run(asyncio.wait([task]))
        if handing_over:
            self.run(self.host.close())
        self.engine.stop()
        self.store.close()

    def teardown(self) -> None:
        for name, ids in self.known.items():
            assert np.array_equal(self.use(name, lambda s: settled(self.engine.read(s, 0, s.tokens))), ids)
            self.run(self.host.delete(name, TENANT))
        assert self.run(settled(self.store.healthy())).ok
        self.stop(True)
        assert self.harness.count_everything() == 0
        self.harness.cleanup()
        self.loop.close()

    def use(self, name: str, work: Callable[[Session], Awaitable[Any]]) -> Any:
        """Do something with a session as a request does it."""

        async def held() -> Any:
            async with self.host.use(name, TENANT) as lease:
                return await work(lease.session)

        return self.run(held())

    def pick(self, number: int) -> tuple[str, np.ndarray]:
        Operations.steps += 1
        name = list(self.known)[number % len(self.known)]  # by age: names are made up anew each time
        return name, self.known[name]

    def turn(self, name: str, prompt: np.ndarray, count: int, **others: Any) -> Turned:
        sink = Turned()

        async def work(session: Session) -> None:
            sampling = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=count)
            self.engine.submit(Turn(session, prompt, sampling, sink, **others))
            assert await asyncio.to_thread(sink.over.wait, 60)

        self.use(name, work)
        return sink

    # -- what may be done ----------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.known) < MOST)
    @rule()
    def create(self) -> None:
        Operations.steps += 1
        name = self.run(self.host.create(TENANT, metadata={})).id
        self.known[name] = np.empty(0, np.int32)

    @precondition(lambda self: self.known)
    @rule(number=any_session, seed=any_seed, count=st.integers(1, 100))
    def append(self, number: int, seed: int, count: int) -> None:
        name, ids = self.pick(number)
        self.use(name, lambda session: settled(self.engine.append(session, some(count, seed))))
        self.known[name] = np.concatenate([ids, some(count, seed)])

    @precondition(lambda self: self.known)
    @rule(number=any_session, seed=any_seed, count=st.integers(1, 1500), stays=st.booleans())
    def ingest(self, number: int, seed: int, count: int, stays: bool) -> None:
        """A long text, which is then acknowledged, or taken back."""
        name, ids = self.pick(number)

        async def work(session: Session) -> None:
            await settled(self.engine.ingest(session, some(count, seed)))
            await settled(self.engine.commit(session) if stays else self.engine.rollback(session))

        self.use(name, work)
        if stays:
            self.known[name] = np.concatenate([ids, some(count, seed)])

    @precondition(lambda self: self.known)
    @rule(number=any_session, seed=any_seed, count=st.integers(1, 60), length=st.integers(1, 40), cut=st.booleans())
    def answer(self, number: int, seed: int, count: int, length: int, cut: bool) -> None:
        """A turn, at the history's end or in place of its end."""
        name, ids = self.pick(number)
        at = seed % (len(ids) + 1) if cut else None
        sink = self.turn(name, some(count, seed), length, cut=at)
        assert isinstance(sink.end, Finished), sink.end
        assert len(sink.ids) == length
        self.known[name] = np.concatenate([ids[:at], some(count, seed), sink.ids]).astype(np.int32)

    @precondition(lambda self: self.known)
    @rule(number=any_session, seed=any_seed, cut=st.booleans())
    def fail(self, number: int, seed: int, cut: bool) -> None:
        """A turn that fails right before it would be stored."""
        name, ids = self.pick(number)

        def commit_state(text: str, finished: Finished) -> None:
            raise RuntimeError("no")

        at = seed % (len(ids) + 1) if cut else None
        sink = self.turn(name, some(50, seed), 3, cut=at, commit_state=commit_state)
        assert isinstance(sink.end, Failed)

    @precondition(lambda self: self.known)
    @rule(number=any_session, seed=any_seed)
    def rewind(self, number: int, seed: int) -> None:
        name, ids = self.pick(number)
        at = seed % (len(ids) + 1)
        self.use(name, lambda session: settled(self.engine.rewind(session, at)))
        self.known[name] = ids[:at]

    @precondition(lambda self: 0 < len(self.known) < MOST)
    @rule(number=any_session, seed=any_seed, implicit=st.booleans())
    def fork(self, number: int, seed: int, implicit: bool) -> None:
        name, ids = self.pick(number)
        at = seed % (len(ids) + 1)
        parent = self.run(self.host.info(name, TENANT))
        child = self.run(fork_at(self.host, parent, at, implicit=implicit))
        assert child is not None
        self.known[child] = ids[:at]

    @precondition(lambda self: self.known)
    @rule(number=any_session, seed=any_seed, gone=st.booleans())
    def move(self, number: int, seed: int, gone: bool) -> None:
        """An export becomes a session: the same one, which was deleted, or a second one."""
        name, ids = self.pick(number)
        file = take(self.store, self.run(self.host.info(name, TENANT)))
        if gone:
            self.run(self.host.delete(name, TENANT))
        new = name if gone else new_id()

        async def work() -> None:
            checked = await asyncio.to_thread(check, file)
            async with self.host.importing(new, TENANT) as place:
                place.done(await asyncio.to_thread(place.importer.make, checked, new, TENANT))

        if gone or len(self.known) < MOST:
            self.run(work())
            self.known[new] = ids
        file.close()

    @precondition(lambda self: len(self.known) > 1)
    @rule(number=any_session)
    def delete(self, number: int) -> None:
        name, _ = self.pick(number)
        self.run(self.host.delete(name, TENANT))
        del self.known[name]

    @precondition(lambda self: self.known)
    @rule(number=any_session, seed=any_seed, unpin=st.booleans())
    def pin(self, number: int, seed: int, unpin: bool) -> None:
        """Choose a place that stays raw, or let all go."""
        name, ids = self.pick(number)
        if len(ids) < 40:
            return
        start = seed % (len(ids) - 10)

        async def work(session: Session) -> None:
            held = session.wc.protection.chosen if unpin else ()
            await settled(self.engine.pin(session, [(start, start + 10)], [(a, min(b, len(ids))) for a, b in held]))
            for first, last in session.wc.protection.chosen:
                assert np.isin(np.arange(first // 32, min(last, len(ids)) // 32), session.raw_blocks()).all()

        with suppress(PinRoomError):
            self.use(name, work)

    @precondition(lambda self: self.known)
    @rule(number=any_session, seed=any_seed, peek=st.booleans())
    def read(self, number: int, seed: int, peek: bool) -> None:
        """A part of the history, whether it is in memory or not."""
        name, ids = self.pick(number)
        start, end = sorted(np.random.default_rng(seed).integers(0, len(ids) + 1, 2).tolist())
        read = self.engine.peek if peek else self.engine.read
        found = self.use(name, lambda session: settled(read(session, start, end)))
        assert np.array_equal(found, ids[start:end])

    @rule(handing_over=st.booleans())
    def restart(self, handing_over: bool) -> None:
        Operations.steps += 1
        self.stop(handing_over)
        self.start()

    # -- what must hold ------------------------------------------------------------------------------------------

    @invariant()
    def is_as_the_lists_say(self) -> None:
        """The store has of each session what its list says; what is in memory agrees with it."""
        listed = self.run(self.host.list(TENANT, 100, None)).sessions
        assert {info.session_id: info.tokens for info in listed} == {n: len(ids) for n, ids in self.known.items()}
        for name, ids in self.known.items():
            blocks = len(ids) // 32
            record, spans = self.store.record(name, TENANT), self.store.read_span_range(name, 0, blocks)
            assert np.array_equal(np.concatenate([spans.result().ids.ravel(), record.result().tail]), ids)
            if (session := self.host.peek(name, TENANT)) is not None:
                assert session.tokens == session.committed_tokens == len(ids)
                assert not session.broken
                session.wc.check()


def some(count: int, seed: int) -> np.ndarray:
    """Plain tokens: no control token among them."""
    return np.random.default_rng(seed).integers(3, 380, count).astype(np.int32)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder: Path = write_model(tmp_path_factory.mktemp("model") / "tiny")
    return load_bundle(folder)


@pytest.mark.parametrize("kind", sorted(HARNESSES))
@pytest.mark.parametrize("examples", [4, pytest.param(250, marks=pytest.mark.slow)])
def test_sessions_are_what_plain_lists_say(bundle: Bundle, kind: str, examples: int) -> None:
    """Law: after any sequence of turns, ingests, rewinds, forks, exports, imports, pins, deletions, failures, evictions
    and restarts, each session holds the ids that a plain list holds, in memory and in the store."""
    machine = type("Machine", (Operations,), {"kind": kind, "bundle": bundle})
    Operations.steps = 0
    chosen = settings(
        max_examples=examples,
        stateful_step_count=50 if examples > 4 else 25,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
        derandomize=examples <= 4,
    )
    run_state_machine_as_test(machine, settings=chosen)
    print(f"{kind}: {Operations.steps} steps")

"""Sends a plan to a server and records each turn. One task a conversation; its turns wait for each other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

from clients.load.plan import SessionPlan, TurnPlan
from clients.load.records import Record
from clients.load.settings import LoadSettings
from clients.load.text import Words
from clients.megacontext_client import APIConnectionError, APIError, AsyncChatStream, AsyncMegaContext, ClientError

LEAD = 1.0
"""Seconds before its first turn that a conversation of a trace is created; a trace may have tens of thousands, so
each is deleted after its last turn, too."""
PREPARED_TOGETHER = 8


@dataclass
class Run:
    """The state of a run, for who watches it: ``phase`` is preparing, then sending; counts are of the measurement.

    until: seconds after the start from which a closed loop sends no more.
    """

    total: int
    until: float | None = None
    phase: str = "preparing"
    prepared: int = 0
    running: int = 0
    records: list[Record] = field(default_factory=list)
    ingested_tokens: int = 0
    started_at: float = 0.0
    seconds: float = 0.0
    interrupted: bool = False

    def now(self) -> float:
        """Seconds since the measurement began."""
        return time.perf_counter() - self.started_at


class Runner:
    """Sends the turns of conversations; each failure is a record, never the end of the run."""

    def __init__(self, server: AsyncMegaContext, settings: LoadSettings, words: Words, model: str) -> None:
        self._server, self._settings, self._words, self._model = server, settings, words, model
        self._sessions: dict[str, str] = {}

    async def run(self, plans: Sequence[SessionPlan], run: Run) -> None:
        """Prepare all sessions, then send. ClientError or OSError if a session can't be prepared.

        Cancelling it (Ctrl-C) ends the sending early; what was recorded until then stays in ``run``.
        """
        try:
            # Those of a trace are prepared on the way.
            if self._settings.trace is None or not _timed(plans):
                await self._prepare_all(plans, run)
            run.phase, run.started_at = "sending", time.perf_counter()
            await self._send_all(plans, run)
            run.seconds = run.now()
        finally:
            if not self._settings.keep_sessions:
                run.phase = "cleaning up"
                await self._delete_all()

    async def _prepare_all(self, plans: Sequence[SessionPlan], run: Run) -> None:
        places = asyncio.Semaphore(PREPARED_TOGETHER)

        async def one(plan: SessionPlan) -> None:
            async with places:
                await self._prepare(plan, run)
                run.prepared += 1

        await _all(one(plan) for plan in plans)

    async def _prepare(self, plan: SessionPlan, run: Run) -> None:
        session = await self._server.create_session(metadata={"load": plan.key})
        self._sessions[plan.key] = session.id
        if plan.document is not None:
            document = await self._server.ingest(session.id, plan.document)
            run.ingested_tokens += document.tokens_added
        if plan.history_tokens:
            texts = self._words.document(f"{plan.key} history", plan.history_tokens)
            history = await self._server.ingest(session.id, texts)
            run.ingested_tokens += history.tokens_added

    async def _send_all(self, plans: Sequence[SessionPlan], run: Run) -> None:
        together = None if _timed(plans) else asyncio.Semaphore(self._settings.concurrency)
        try:
            await _all(self._converse(plan, run, together or nullcontext()) for plan in plans)
        except asyncio.CancelledError:
            run.interrupted = True
            # The interrupt is dealt with: what was measured so far is reported.
            if (current := asyncio.current_task()) is not None:
                current.uncancel()

    async def _converse(self, plan: SessionPlan, run: Run, place: AbstractAsyncContextManager[object]) -> None:
        async with place:
            for turn in plan.turns:
                if turn.at is not None and plan.key not in self._sessions:
                    await _until(run, turn.at - LEAD)
                    with suppress(ClientError):
                        # If it fails, each of its turns tries to send and records why it can't.
                        await self._prepare(plan, run)
                # Before it is due: a long text takes its time.
                text = self._words.message(f"{plan.key} {turn.number}", turn.prompt_tokens)
                await (_until(run, turn.at) if turn.at is not None else asyncio.sleep(turn.think))
                if turn.at is None and run.until is not None and run.now() >= run.until:
                    return
                run.running += 1
                try:
                    await self._turn(plan, turn, text, run)
                finally:
                    run.running -= 1
            if self._settings.trace is not None and not self._settings.keep_sessions:
                await self._delete(self._sessions.pop(plan.key, None))

    async def _turn(self, plan: SessionPlan, turn: TurnPlan, text: str, run: Run) -> None:
        sent = run.now()
        due = sent if turn.at is None else turn.at
        record = Record(plan.key, turn.number, due, sent, turn.prompt_tokens, turn.output_tokens)
        try:
            async with asyncio.timeout(self._settings.timeout):
                await self._exchange(plan, turn, text, record, run)
        except TimeoutError:
            record.status = "timeout"
        except APIError as error:
            record.status = str(error.status) if error.status >= 400 else error.code or "error event"
        except APIConnectionError:
            record.status = "connection"
        except ClientError:
            record.status = "error"
        record.done = run.now()
        run.records.append(record)

    async def _exchange(self, plan: SessionPlan, turn: TurnPlan, text: str, record: Record, run: Run) -> None:
        if plan.key not in self._sessions:
            await self._prepare(plan, run)
        stream = await self._server.chat(
            self._sessions[plan.key],
            text,
            stream=True,
            model=self._model,
            max_tokens=turn.output_tokens,
            ignore_eos=self._settings.ignore_eos,
            seed=self._settings.seed + turn.number,
        )
        record.status = "200"
        async with stream:
            if not await self._read(stream, turn.leaves_after, record, run):
                record.outcome = "disconnected"
                return
        record.outcome = "completed"
        if (usage := stream.result.usage) is not None:
            record.prompt_tokens = usage.prompt_tokens - usage.cached_tokens
            record.history_tokens, record.completion_tokens = usage.cached_tokens, usage.completion_tokens

    @staticmethod
    async def _read(stream: AsyncChatStream, leaves_after: int | None, record: Record, run: Run) -> bool:
        """Note when each piece of text comes; False if the client leaves before the end."""
        async for delta in stream:
            if delta.content:
                record.pieces.append(run.now())
                if leaves_after is not None and len(record.pieces) >= leaves_after:
                    return False
        return True

    async def _delete_all(self) -> None:
        places = asyncio.Semaphore(PREPARED_TOGETHER)

        async def one(session_id: str) -> None:
            async with places:
                await self._delete(session_id)

        await _all(one(session_id) for session_id in self._sessions.values())
        self._sessions.clear()

    async def _delete(self, session_id: str | None) -> None:
        # What can't be deleted now is the server's to keep.
        if session_id is not None:
            with suppress(ClientError):
                await self._server.delete(session_id)


def _timed(plans: Sequence[SessionPlan]) -> bool:
    """Whether the turns have due times (an open loop or a trace)."""
    return any(turn.at is not None for plan in plans for turn in plan.turns)


async def _until(run: Run, at: float) -> None:
    await asyncio.sleep(max(0.0, at - run.now()))


async def _all(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Do it all at once; the first failure, or a cancel, stops the rest."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

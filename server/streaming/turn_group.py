"""The events of all turns of one request, for one reader."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from mc_core.engine.requests import Event, Failed, Finished
from server.streaming.turn_stream import TurnStream


class TurnGroup:
    """Hands out what any of the turns tells, as it comes, each in its turn. It listens to all until it is closed."""

    def __init__(self, streams: Sequence[TurnStream]) -> None:
        self.streams = streams
        self._places = [0] * len(streams)
        self._unread = list(range(len(streams)))
        # In the order in which they were read last, so that none of them waits for ever.
        self._reading: dict[asyncio.Task[Event], int] = {}
        self._open = True
        for stream in streams:
            stream.arrive()

    async def next(self, seconds: float | None = None) -> tuple[int, Event] | None:
        """The place of a turn and its next event; None if nothing came in time. Not after the last event of all."""
        while self._unread:
            turn = self._unread.pop(0)
            self._reading[asyncio.create_task(self.streams[turn].at(self._places[turn]))] = turn
        done, _ = await asyncio.wait(self._reading, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            return None
        task = next(task for task in self._reading if task in done)
        turn, event = self._reading.pop(task), task.result()
        self._places[turn] += 1
        if not isinstance(event, Finished | Failed):
            self._unread.append(turn)
        return turn, event

    def close(self) -> None:
        """Listen no more; as often as one likes."""
        if self._open:
            self._open = False
            for stream in self.streams:
                stream.leave()
            for task in self._reading:
                task.cancel()

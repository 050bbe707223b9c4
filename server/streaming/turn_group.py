"""The events of all turns of one request, for one reader."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from mc_core.engine.requests import Event, Failed, Finished
from server.streaming.turn_stream import TurnStream


class TurnGroup:
    """Hands out what any of the turns tells, as it comes, each in its turn."""

    def __init__(self, streams: Sequence[TurnStream]) -> None:
        self.streams = streams
        self._unread = list(range(len(streams)))
        # In the order in which they were read last, so that none of them waits for ever.
        self._reading: dict[asyncio.Task[Event], int] = {}

    async def next(self, seconds: float | None = None) -> tuple[int, Event] | None:
        """The place of a turn and its next event; None if nothing came in time. Not after the last event of all."""
        while self._unread:
            place = self._unread.pop(0)
            self._reading[asyncio.create_task(self.streams[place].next())] = place
        done, _ = await asyncio.wait(self._reading, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            return None
        task = next(task for task in self._reading if task in done)
        place, event = self._reading.pop(task), task.result()
        if not isinstance(event, Finished | Failed):
            self._unread.append(place)
        return place, event

    def cancel(self) -> None:
        """Stop every turn, wherever it is; as often as one likes."""
        for stream in self.streams:
            stream.cancel()
        for task in self._reading:
            task.cancel()

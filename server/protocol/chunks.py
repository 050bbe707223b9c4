"""What the streams of chat and text completions have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mc_core.engine.requests import Finished
from server.errors import ApiError
from server.protocol.common import usage
from server.streaming.frames import KEEP_ALIVE, Frame

DONE = Frame("[DONE]")


class ChunkFormat:
    """Chunks of a choice; the usage comes last if it was asked for, then [DONE].

    head: fields of every body. chunk: those of chunks alone.
    """

    keep_alive = KEEP_ALIVE

    def __init__(self, head: dict[str, Any], chunk: dict[str, Any], *, include_usage: bool) -> None:
        self.head, self._chunk_head, self._include_usage = head, {**head, **chunk}, include_usage

    def opening(self) -> Sequence[Frame]:
        return ()

    def failed(self, error: ApiError) -> Sequence[Frame]:
        return (Frame(error.body(), event="error"),)

    def ending(self, finished: Sequence[Finished]) -> Sequence[Frame]:
        told = Frame({**self._chunk_head, "choices": [], "usage": usage(finished)})
        return (told, DONE) if self._include_usage else (DONE,)

    def together(self, bodies: Sequence[dict[str, Any]], finished: Sequence[Finished]) -> dict[str, Any]:
        """One body with the choices and the usage of all; each of several choices tells its own context."""
        body = bodies[0]
        if len(bodies) > 1:
            choices = [{**choice, "x_megacontext": one["x_megacontext"]} for one in bodies for choice in one["choices"]]
            body = {**body, "choices": choices}
            del body["x_megacontext"]
        return {**body, "usage": usage(finished)}

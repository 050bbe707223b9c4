"""Writes responses: as events in the order that OpenAI's client wants them, or whole.

All that is written follows from the response's head, the pieces of its reply and how it ended, so a stream can be
written again from what was stored, event by event.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mc_core.engine.requests import Finished, TokenLogprob
from mc_core.models.tokenizer import Tokenizer
from server.apis.responses.ending import Clock, ending, failure
from server.errors import ApiError
from server.streaming.frames import KEEP_ALIVE, Frame
from server.streaming.pieces import Piece, TextPiece
from server.streaming.reply import Reply

Logprobs = Sequence[dict[str, Any]]


class ResponseFormat:
    """Writes one response. head: all of it that is known at its start."""

    keep_alive = KEEP_ALIVE

    def __init__(self, head: Mapping[str, Any], tokenizer: Tokenizer, clock: Clock) -> None:
        self._head, self._tokenizer, self._clock = head, tokenizer, clock
        self._stem = str(head["id"]).removeprefix("resp_")
        self._number = 0
        self._output: list[dict[str, Any]] = []
        self._texts: list[str] | None = None
        self._logprobs: list[dict[str, Any]] = []

    # -- as the shared machinery calls it --------------------------------------------------------------------------

    def opening(self) -> Sequence[Frame]:
        begun = {**self._head, "status": "in_progress"}
        return [self._event("response.created", response=begun), self._event("response.in_progress", response=begun)]

    def piece(self, piece: Piece, logprobs: tuple[TokenLogprob, ...]) -> Sequence[Frame]:
        return self.tell(piece, logprobs_of(logprobs, self._tokenizer))

    def closing(self, finished: Finished, session_id: str | None) -> Sequence[Frame]:
        return self.end(ending(finished, session_id, self._clock))

    def failed(self, error: ApiError) -> Sequence[Frame]:
        return self.end(failure(error, self._clock))

    def ending(self, finished: Sequence[Finished]) -> Sequence[Frame]:
        return ()

    def whole(self, reply: Reply, finished: Finished, session_id: str | None) -> dict[str, Any]:
        """The object, as the last event of a stream has it."""
        self.tell(TextPiece(reply.text), logprobs_of(tuple(reply.logprobs), self._tokenizer))
        self.closing(finished, session_id)
        return self.response

    def together(self, bodies: Sequence[dict[str, Any]], finished: Sequence[Finished]) -> dict[str, Any]:
        return bodies[0]

    # -- as what was stored is written again -------------------------------------------------------------------------

    def tell(self, piece: Piece, logprobs: Logprobs) -> Sequence[Frame]:
        """What a piece adds."""
        match piece:
            case TextPiece(text) if text or logprobs:
                frames = [] if self._texts is not None else self._open()
                assert self._texts is not None
                self._texts.append(text)
                self._logprobs.extend(logprobs)
                return [*frames, self._of_text("response.output_text.delta", delta=text, logprobs=list(logprobs))]
        return ()

    def end(self, ended: Mapping[str, Any]) -> Sequence[Frame]:
        """What a response's end adds; ended: what that changes in its head."""
        status = ended["status"]
        frames: list[Frame] = []
        if status in ("completed", "incomplete"):
            if not self._output:
                frames += self._open()
            if self._texts is not None:
                frames += self._close("completed" if status == "completed" else "incomplete")
        elif self._texts is not None:
            self._output[-1] = self._message("incomplete", [self._part()])
        self.response = {**self._head, **ended, "output": self._output}
        name = {"completed": "completed", "failed": "failed"}.get(status, "incomplete")
        return [*frames, self._event(f"response.{name}", response=self.response)]

    # ----------------------------------------------------------------------------------------------------------------

    def _open(self) -> list[Frame]:
        self._texts, self._logprobs = [], []
        begun = self._message("in_progress", [])
        self._output.append(begun)
        return [
            self._event("response.output_item.added", output_index=len(self._output) - 1, item=begun),
            self._of_text("response.content_part.added", part=self._part()),
        ]

    def _close(self, status: str) -> list[Frame]:
        part = self._part()
        done = self._message(status, [part])
        frames = [
            self._of_text("response.output_text.done", text=part["text"], logprobs=part["logprobs"]),
            self._of_text("response.content_part.done", part=part),
            self._event("response.output_item.done", output_index=len(self._output) - 1, item=done),
        ]
        self._output[-1], self._texts = done, None
        return frames

    def _part(self) -> dict[str, Any]:
        text = "".join(self._texts or ())
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(self._logprobs)}

    def _message(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        number = len(self._output) - (1 if self._output else 0)
        id = f"msg_{self._stem}o{number}"
        return {"id": id, "type": "message", "role": "assistant", "status": status, "content": content}

    def _of_text(self, type: str, **fields: Any) -> Frame:
        item = self._output[-1]
        return self._event(type, item_id=item["id"], output_index=len(self._output) - 1, content_index=0, **fields)

    def _event(self, type: str, **fields: Any) -> Frame:
        number, self._number = self._number, self._number + 1
        return Frame({"type": type, "sequence_number": number, **fields}, event=type)


def logprobs_of(tokens: tuple[TokenLogprob, ...], tokenizer: Tokenizer) -> Logprobs:
    """As OpenAI writes them."""

    def one(token_id: int, logprob: float) -> dict[str, Any]:
        raw = tokenizer.token_bytes(token_id)
        return {"token": raw.decode("utf-8", "replace"), "bytes": list(raw), "logprob": max(logprob, -9999.0)}

    return [
        {**one(token.token_id, token.logprob), "top_logprobs": [one(*other) for other in token.top]} for token in tokens
    ]

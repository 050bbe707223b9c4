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
from server.streaming.pieces import CallArguments, CallEnd, CallStart, Piece, TextPiece
from server.streaming.reply import Reply

Logprobs = Sequence[dict[str, Any]]


class ResponseFormat:
    """Writes one response. head: all of it that is known at its start."""

    keep_alive = KEEP_ALIVE

    def __init__(self, head: Mapping[str, Any], tokenizer: Tokenizer, clock: Clock) -> None:
        self.head, self._tokenizer, self._clock = head, tokenizer, clock
        self._stem = str(head["id"]).removeprefix("resp_")
        self._number = 0
        self._output: list[dict[str, Any]] = []
        self._calls: dict[int, int] = {}
        self._texts: list[str] | None = None
        self._logprobs: list[dict[str, Any]] = []

    # -- as the shared machinery calls it --------------------------------------------------------------------------

    def opening(self) -> Sequence[Frame]:
        begun = {**self.head, "status": "in_progress"}
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
        if reply.text or reply.logprobs:
            self.tell(TextPiece(reply.text), logprobs_of(tuple(reply.logprobs), self._tokenizer))
        for index, call in enumerate(reply.calls):
            for piece in (CallStart(index, call.id, call.name), CallArguments(index, call.arguments), CallEnd(index)):
                self.tell(piece, ())
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
            case CallStart(index, call_id, name):
                frames = self._close("completed")
                item = {
                    "id": f"fc_{self._stem}o{len(self._output)}",
                    "type": "function_call",
                    "call_id": call_id,
                    "name": name,
                    "arguments": "",
                    "status": "in_progress",
                }
                self._calls[index] = len(self._output)
                self._output.append(item)
                return [*frames, self._of_item("response.output_item.added", self._calls[index])]
            case CallArguments(index, fragment):
                place = self._calls[index]
                item = self._output[place]
                self._output[place] = {**item, "arguments": item["arguments"] + fragment}
                name = "response.function_call_arguments.delta"
                return [self._event(name, item_id=item["id"], output_index=place, delta=fragment)]
            case CallEnd(index):
                return self._end_call(self._calls.pop(index), "completed")
        return ()

    def end(self, ended: Mapping[str, Any]) -> Sequence[Frame]:
        """What a response's end adds; ended: what that changes in its head."""
        status, frames = ended["status"], list[Frame]()
        of_items = "completed" if status == "completed" else "incomplete"
        if status in ("completed", "incomplete"):
            if not self._output:
                frames += self._open()
            frames += self._close(of_items)
            for place in self._calls.values():
                frames += self._end_call(place, of_items)
        else:
            if self._texts is not None:
                self._output[-1] = self._message(of_items, [self._part()])
            for place in self._calls.values():
                self._output[place] = {**self._output[place], "status": of_items}
        self.response = {**self.head, **ended, "output": self._output}
        name = {"completed": "completed", "failed": "failed"}.get(status, "incomplete")
        return [*frames, self._event(f"response.{name}", response=self.response)]

    # ----------------------------------------------------------------------------------------------------------------

    def _open(self) -> list[Frame]:
        self._texts, self._logprobs = [], []
        self._output.append({})
        self._output[-1] = self._message("in_progress", [])
        return [
            self._of_item("response.output_item.added", len(self._output) - 1),
            self._of_text("response.content_part.added", part=self._part()),
        ]

    def _close(self, status: str) -> list[Frame]:
        """End the message that is open, if one is."""
        if self._texts is None:
            return []
        part = self._part()
        self._output[-1] = self._message(status, [part])
        frames = [
            self._of_text("response.output_text.done", text=part["text"], logprobs=part["logprobs"]),
            self._of_text("response.content_part.done", part=part),
            self._of_item("response.output_item.done", len(self._output) - 1),
        ]
        self._texts = None
        return frames

    def _end_call(self, place: int, status: str) -> list[Frame]:
        item = self._output[place] = {**self._output[place], "status": status}
        name, told = "response.function_call_arguments.done", {"name": item["name"], "arguments": item["arguments"]}
        return [
            self._event(name, item_id=item["id"], output_index=place, **told),
            self._of_item("response.output_item.done", place),
        ]

    def _part(self) -> dict[str, Any]:
        text = "".join(self._texts or ())
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(self._logprobs)}

    def _message(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        id = f"msg_{self._stem}o{len(self._output) - 1}"
        return {"id": id, "type": "message", "role": "assistant", "status": status, "content": content}

    def _of_text(self, type: str, **fields: Any) -> Frame:
        item = self._output[-1]
        return self._event(type, item_id=item["id"], output_index=len(self._output) - 1, content_index=0, **fields)

    def _of_item(self, type: str, place: int) -> Frame:
        return self._event(type, output_index=place, item=self._output[place])

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

"""Writes text completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mc_core.engine.requests import Finished, TokenLogprob
from mc_core.models.detokenize import Detokenizer
from mc_core.models.tokenizer import Tokenizer
from server.protocol.chunks import ChunkFormat
from server.protocol.common import context
from server.streaming.frames import Frame
from server.streaming.pieces import Piece, TextPiece
from server.streaming.reply import Reply


class CompletionFormat(ChunkFormat):
    """Writes one choice of a text completion: as chunks, or as a whole body.

    index: of the prompt that it continues.
    """

    def __init__(
        self,
        completion_id: str,
        created: int,
        model: str,
        tokenizer: Tokenizer,
        index: int = 0,
        *,
        include_usage: bool = False,
    ) -> None:
        head = {"id": completion_id, "object": "text_completion", "created": created, "model": model}
        super().__init__(head, {}, include_usage=include_usage)
        self._tokenizer, self._detokenizer, self._index = tokenizer, Detokenizer(tokenizer), index
        self._offset = 0

    def piece(self, piece: Piece, logprobs: tuple[TokenLogprob, ...]) -> Sequence[Frame]:
        assert isinstance(piece, TextPiece)
        told = self._logprobs(logprobs) if logprobs else None
        return (Frame(self._choice(piece.text, None, told)),)

    def closing(self, finished: Finished, session_id: str | None) -> Sequence[Frame]:
        chunk = self._choice("", finished.reason, None)
        chunk["x_megacontext"] = context(finished.context, session_id)
        return (Frame(chunk),)

    def whole(self, reply: Reply, finished: Finished, session_id: str | None) -> dict[str, Any]:
        """The body without its usage."""
        text = reply.text
        told = self._logprobs(tuple(reply.logprobs)) if reply.logprobs else None
        if told is not None:
            # Tokens of a stop string stand at the end of the text, which it is no part of.
            told["text_offset"] = [min(place, len(text)) for place in told["text_offset"]]
        body = self._choice(text, finished.reason, told)
        body["x_megacontext"] = context(finished.context, session_id)
        return body

    def _choice(self, text: str, reason: str | None, logprobs: dict[str, Any] | None) -> dict[str, Any]:
        choice = {"index": self._index, "text": text, "logprobs": logprobs, "finish_reason": reason}
        return {**self.head, "choices": [choice]}

    def _logprobs(self, tokens: tuple[TokenLogprob, ...]) -> dict[str, Any]:
        return {
            "tokens": [self._text(token.token_id) for token in tokens],
            "token_logprobs": [max(token.logprob, -9999.0) for token in tokens],
            "top_logprobs": [self._top(token.top) for token in tokens],
            "text_offset": [self._place(token.token_id) for token in tokens],
        }

    def _place(self, token_id: int) -> int:
        """Where in the text a token begins: for one within a character, where that character does."""
        place = self._offset
        self._offset += len(self._detokenizer.push(token_id))
        return place

    def _top(self, top: tuple[tuple[int, float], ...]) -> dict[str, float]:
        """By text; a second token of the same text is told apart by its bytes, a third by its id."""
        named: dict[str, float] = {}
        for token_id, value in top:
            names = (self._text(token_id), _byte_name(self._tokenizer.token_bytes(token_id)), f"token_id:{token_id}")
            named[next(name for name in names if name not in named)] = value
        return named

    def _text(self, token_id: int) -> str:
        raw = self._tokenizer.token_bytes(token_id)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return _byte_name(raw)


def _byte_name(raw: bytes) -> str:
    """As OpenAI names tokens that are no text."""
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

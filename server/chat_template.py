"""Messages to token ids by the model's own chat template, so that no text of a user can forge a control token.

The template is rendered with an unguessable mark in place of every content. What stands between the marks is the
template's own and may name control tokens; the contents are encoded as plain text, whatever they look like.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

import jinja2
import numpy as np
from jinja2.sandbox import ImmutableSandboxedEnvironment
from numpy.typing import NDArray

from mc_core.errors import ConfigError
from mc_core.models.tokenizer import Tokenizer
from server.errors import ApiError, bad_request


@dataclass(frozen=True)
class Message:
    """One message of a chat: role is "system", "user" or "assistant"."""

    role: str
    content: str
    name: str | None = None


@dataclass(frozen=True)
class _Part:
    text: str
    is_content: bool


class ChatTemplate:
    """Renders new messages after what a session already holds."""

    def __init__(self, tokenizer: Tokenizer, tokens: Mapping[str, str]) -> None:
        """tokens: bos_token, eos_token and the like, as the template's variables."""
        if tokenizer.chat_template is None:
            raise ConfigError("the model folder has no chat template (chat_template in tokenizer_config.json)")
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _raise
        self._tokenizer, self._tokens = tokenizer, dict(tokens)
        try:
            self._template = environment.from_string(tokenizer.chat_template)
            self._suffix = self._closing()
        except (jinja2.TemplateError, ApiError) as error:
            raise ConfigError(f"the model folder's chat template cannot be used: {error}") from error

    @property
    def suffix_ids(self) -> NDArray[np.int32]:
        """The ids that close a reply."""
        return self._tokenizer.encode_control(self._suffix)

    def ids(
        self, messages: Sequence[Message], *, first: bool, reply: bool, system: Message | None = None
    ) -> NDArray[np.int32]:
        """Token ids of messages. first: nothing stands before them; else ``system`` is the conversation's.
        reply: open the assistant's reply."""
        parts = self._render(messages, reply) if first else self._render_after(messages, reply, system)
        pieces = [
            self._tokenizer.encode(p.text) if p.is_content else self._tokenizer.encode_control(p.text)
            for p in parts
            if p.text
        ]
        return np.concatenate(pieces) if pieces else np.empty(0, np.int32)

    def _render(self, messages: Sequence[Message], reply: bool) -> list[_Part]:
        marks = [f"\ue000{secrets.token_hex(16)}\ue001" for _ in messages]
        text = self._run([{"role": m.role, "content": mark} for m, mark in zip(messages, marks, strict=True)], reply)
        parts = []
        for message, mark in zip(messages, marks, strict=True):
            before, found, text = text.partition(mark)
            if not found:
                raise bad_request(f"the model's chat template drops the {message.role} message", "messages")
            parts += [_Part(before, False), _Part(message.content, True)]
        return [*parts, _Part(text, False)]

    def _render_after(self, messages: Sequence[Message], reply: bool, system: Message | None) -> list[_Part]:
        """Render behind an exchange and cut that off again, since templates treat first messages differently.

        The cut lies behind what closes a reply, because some templates write earlier replies unlike the last one.
        """
        exchange = [Message("user", "x"), Message("assistant", "y")]
        parts = self._render([*([system] if system else []), *exchange, *messages], reply)
        after_reply, *new = parts[6 if system else 4 :]
        if not after_reply.text.startswith(self._suffix):
            raise bad_request("the model's chat template cannot continue a conversation", "messages")
        return [_Part(after_reply.text[len(self._suffix) :], False), *new]

    def _run(self, messages: list[dict[str, str]], reply: bool) -> str:
        try:
            return self._template.render(messages=messages, add_generation_prompt=reply, **self._tokens)
        except Exception as error:  # a template is somebody else's program and may fail in any way
            raise bad_request(f"the model's chat template refuses these messages: {error}", "messages") from error

    def _closing(self) -> str:
        """What the template puts behind a reply, before the next message."""
        mark = secrets.token_hex(16)
        text = self._run([{"role": "user", "content": "x"}, {"role": "assistant", "content": mark}], False)
        return text.partition(mark)[2]


def _raise(message: str) -> NoReturn:
    raise ValueError(message)

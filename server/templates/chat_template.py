"""Messages to token ids by the model's own chat template, so that no text of a user can forge a control token."""

from __future__ import annotations

import copy
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mc_core.errors import ConfigError
from mc_core.models.tokenizer import Ids, Tokenizer
from server.errors import ApiError, bad_request
from server.templates.environment import RefusedError, explain, make_environment
from server.templates.messages import Message
from server.templates.tool_format import ToolFormat, learn_tools
from server.templates.wall import Guarded, Wall, common
from server.tools.tool import ToolUse

__all__ = ["ChatTemplate", "Message"]


class ChatTemplate:
    """Renders messages as the model's template writes them, at the start of a session or behind what it holds.

    problem: why the template cannot be used, None if it can; ``check`` and ``ids`` raise it.
    suffix_ids: what closes a reply. end_ids: the control token that does, if there is one. tool_format: how it treats
    tools. use: the tools that it tells of, of a template that ``with_tools`` made.
    """

    use: ToolUse | None = None

    def __init__(self, tokenizer: Tokenizer, tokens: Mapping[str, str]) -> None:
        """tokens: bos_token, eos_token and the like, as the template's variables. A broken template is no error yet."""
        if tokenizer.chat_template is None:
            raise ConfigError("the model folder has no chat template (chat_template in tokenizer_config.json)")
        self._tokenizer, self._tokens = tokenizer, dict(tokens)
        self.problem: str | None = None
        self.suffix_ids, self.end_ids = np.empty(0, np.int32), frozenset[int]()
        self._wall, self.tool_format = Wall(tokenizer, tokenizer.chat_template), ToolFormat()
        try:
            self._template = make_environment().from_string(tokenizer.chat_template)
            self._learn()
            self.tool_format = learn_tools(self._render)
        except ApiError as error:
            self.problem = error.message
        except Exception as error:  # a template is somebody else's program and may be wrong in any way
            self.problem = _unusable(error).message

    def with_tools(self, use: ToolUse | None) -> ChatTemplate:
        """The same template, that tells the model of tools wherever it renders a conversation."""
        if use == self.use:
            return self
        template = copy.copy(self)
        template.use = use
        return template

    def check(self) -> None:
        """ApiError 400 if the template cannot be used."""
        if self.problem is not None:
            raise _broken(self.problem)

    def ids(self, messages: Sequence[Message], *, first: bool, reply: bool, system: Message | None = None) -> Ids:
        """Token ids of messages. reply: open the assistant's reply behind them.

        first: the messages are a whole conversation. Else earlier exchanges stand before them, and the ids are those
        that the messages have in the whole: then ``system`` is the conversation's own system message, for templates
        that repeat or move it. A system message behind others stands where the template puts it, or else in front of
        the user message behind it: the same in both cases.
        """
        self.check()
        talk = [*([system] if system else []), *([] if first else _before(messages))]
        if first and not talk:
            talk, messages = list(messages[:1]), messages[1:]
        ids = self._whole if first else self._later
        inside = [message for message in messages if message.role == "system"]
        if not inside:
            return ids(talk, messages, reply)
        try:
            self._check_told([*talk, *messages], reply)
            return ids(talk, messages, reply)
        except ApiError:
            guarded = self._guarded([inside[0], Message("user", "x")])
            self._run(guarded, reply=True)  # what the template does not take even in front is refused
            return ids(talk, _folded(messages), reply)

    def around(self, messages: Sequence[Message]) -> list[Ids]:
        """What the template writes before each of a whole conversation's messages, whose texts nobody can know."""
        self.check()
        text, at, parts = self._run(self._guarded(messages), reply=False), 0, []
        for message in messages:
            place = text.find(message.content, at)
            if place < 0:
                raise _broken(f"the model's chat template leaves out a {message.role} message, or moves it")
            parts.append(self._tokenizer.encode_control(text[at:place]))
            at = place + len(message.content)
        return parts

    def _whole(self, talk: Sequence[Message], messages: Sequence[Message], reply: bool) -> Ids:
        guarded = self._guarded([*talk, *messages])
        return guarded.ids(self._run(guarded, reply))

    def _later(self, talk: Sequence[Message], messages: Sequence[Message], reply: bool) -> Ids:
        """Render behind an exchange and cut that off again, since templates treat first messages differently."""
        guarded = self._guarded([*talk, *messages])
        text = self._run(guarded, reply)
        ids = guarded.ids_behind(text, _behind(text, talk[-1]))
        closing = self.suffix_ids if talk[-1].role == "assistant" else self._closing(talk)
        return ids[common(ids, closing) :]

    def _check_told(self, messages: Sequence[Message], reply: bool) -> None:
        """ApiError 400 if the template leaves out a system message, or moves a later one in front of a question."""
        marked = [_marked(message) for message in messages]
        text, place = self._run(self._guarded(marked), reply), 0
        for number, message in enumerate(marked):
            if message.role == "assistant":
                continue
            at = text.find(message.content.strip(), place)
            if at < 0:
                raise bad_request("the model's chat template drops a system message in the middle", "messages")
            # The first one may stand anywhere.
            place = 0 if number == 0 and message.role == "system" else at

    def _learn(self) -> None:
        """What the template writes around plain messages, which tells how replies end and what they may hold."""
        ask, answer = _exchange()
        alone, going_on = self._closing([ask, answer]), self._closing([ask, answer], [Message("user", "x")])
        self.suffix_ids = alone[: common(alone, going_on)]
        for at, token in enumerate(self.suffix_ids.tolist()):
            if token in self._tokenizer.control_ids:
                if not self._tokenizer.decode(self.suffix_ids[:at]).strip():
                    self.end_ids = frozenset({token})
                break
        frame = self._guarded([ask, answer, ask])
        written = {span.id for span in self._tokenizer.find_control(self._run(frame, reply=False))}
        spoken = self._tokenizer.control_ids - self._tokenizer.special_ids - written
        self._wall = Wall(self._tokenizer, self._tokenizer.chat_template or "", frozenset(spoken))

    def _closing(self, talk: Sequence[Message], more: Sequence[Message] = ()) -> Ids:
        """What the template writes behind the last message of ``talk``."""
        guarded = self._guarded([*talk, *more])
        text = self._run(guarded, reply=False)
        return guarded.ids_behind(text, _behind(text, talk[-1]))

    def _guarded(self, messages: Sequence[Message]) -> Guarded:
        if not self.tool_format.native:
            return self._wall.behind(self.tool_format.plain(messages, self.use))
        return self._wall.behind(messages, self.use.told() if self.use else (), self.tool_format)

    def _run(self, guarded: Guarded, reply: bool) -> str:
        try:
            return self._render(guarded.messages, guarded.tools, reply)
        except RefusedError as error:
            raise bad_request(f"the model's chat template refuses these messages: {error}", "messages") from error
        except Exception as error:
            raise _unusable(error) from error

    def _render(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]], reply: bool) -> str:
        return self._template.render(
            messages=messages, tools=tools or None, documents=None, add_generation_prompt=reply, **self._tokens
        )


def _broken(problem: str) -> ApiError:
    return bad_request(problem, "messages", "chat_template_error")


def _unusable(error: Exception) -> ApiError:
    return _broken(f"the model's chat template cannot be used: {explain(error)}")


def _exchange() -> list[Message]:
    """A made-up question and its answer, whose texts nobody can know."""
    return [Message("user", secrets.token_hex(16)), Message("assistant", secrets.token_hex(16))]


def _before(messages: Sequence[Message]) -> list[Message]:
    """What ``messages`` can stand behind."""
    talk = _exchange()
    if messages and messages[0].role == "assistant":
        talk.append(Message("user", secrets.token_hex(16)))
    return talk


def _marked(message: Message) -> Message:
    """A question or a system message with a text that nobody can know; replies, and what is blank, as they are."""
    told = message.role != "assistant" and message.content.strip()
    return replace(message, content=secrets.token_hex(16)) if told else message


def _behind(rendered: str, message: Message) -> int:
    """The place behind a made-up message."""
    at = rendered.rfind(message.content)
    if at < 0:
        raise _broken(f"the model's chat template leaves out earlier {message.role} messages")
    return at + len(message.content)


def _folded(messages: Sequence[Message]) -> list[Message]:
    """System messages in front of the user message behind them, a blank line between, as Gemma and Mistral have it."""
    folded: list[Message] = []
    waiting: list[str] = []
    for message in messages:
        if message.role == "system":
            waiting += [message.content] if message.content.strip() else []
        elif message.role == "user":
            folded.append(Message("user", "\n\n".join([*waiting, message.content]), message.name))
            waiting = []
        else:
            folded += [*(Message("user", text) for text in waiting), message]
            waiting = []
    return [*folded, *(Message("user", text) for text in waiting)]

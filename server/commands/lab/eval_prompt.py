"""Questions and conversations as the server puts them to a model."""

from __future__ import annotations

import numpy as np

from mc_core.bundle.bundle import Bundle
from mc_core.lab.data.arrays import Ids
from mc_core.lab.evaluation.prompt import Prompt, Turns
from mc_core.models.tokenizer import Tokenizer
from server.templates.chat_template import ChatTemplate, Message


def prompt_of(bundle: Bundle) -> Prompt:
    """By the bundle's chat template; as lines where it has none. ApiError if the template cannot be used."""
    tokenizer = bundle.tokenizer
    if tokenizer.chat_template is None:
        return LinePrompt(tokenizer)
    template = ChatTemplate(tokenizer, tokenizer.special_tokens)
    template.check()
    tokenizer.also_end_with(template.end_ids)
    return TemplatePrompt(template)


class TemplatePrompt:
    """By a chat template."""

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template

    def __call__(self, question: str) -> tuple[Ids, Ids]:
        return self._template.ids([Message("user", question)], first=False, reply=True), self._template.suffix_ids

    def alone(self, text: str) -> tuple[Ids, Ids]:
        return self._template.ids([Message("user", text)], first=True, reply=True), self._template.suffix_ids

    def chat(self, turns: Turns) -> Ids:
        messages = [
            Message(role, text) for turn in turns for role, text in zip(("user", "assistant"), turn, strict=True)
        ]
        return self._template.ids(messages, first=True, reply=False)


class LinePrompt:
    """For a base without a template: what is said and what is replied, a line each."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def __call__(self, question: str) -> tuple[Ids, Ids]:
        return self._tokenizer.encode(f"\n{question}\n"), np.empty(0, np.int32)

    def alone(self, text: str) -> tuple[Ids, Ids]:
        return self._tokenizer.encode_first(f"{text}\n"), np.empty(0, np.int32)

    def chat(self, turns: Turns) -> Ids:
        return self._tokenizer.encode_first("".join(f"{said}\n{reply}\n" for said, reply in turns))

"""ChatML as the bundled models speak it: control tokens, the template, and the same thing as token ids."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

from mc_core.errors import ConfigError
from mc_core.lab.data.corpus import Document

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CONTROL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END, *(f"<|reserved_{i}|>" for i in range(13)))

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('roles are system, user and assistant') }}"
    "{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


class ChatEncoder:
    """Text and turns -> token ids; control tokens come from the format alone, never from what a text says."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = Tokenizer.from_str(tokenizer.to_str())
        # "<|im_end|>" inside a text is encoded letter by letter.
        self.tokenizer.encode_special_tokens = True
        self.end_of_text, self.turn_start, self.turn_end = (self._control(t) for t in CONTROL_TOKENS[:3])
        self.newline = self.text("\n")
        self._openings: dict[str, list[int]] = {}

    def text(self, text: str) -> list[int]:
        """Plain text as ids."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def opening(self, role: str) -> list[int]:
        """The start of a turn, up to where its content begins."""
        if role not in self._openings:
            self._openings[role] = [self.turn_start, *self.text(f"{role}\n")]
        return self._openings[role]

    def closing(self) -> list[int]:
        """The end of a turn."""
        return [self.turn_end, *self.newline]

    def turn(self, role: str, content: str) -> list[int]:
        """A whole turn, equal to what the template renders."""
        return [*self.opening(role), *self.text(content), *self.closing()]

    def documents(self, documents: Sequence[Document]) -> list[list[int]]:
        """Each document's ids, from the document-start token on; all encoded as one parallel batch."""
        parts = [part for document in documents for part in document.parts]
        encoded = iter(self.tokenizer.encode_batch_fast(parts, add_special_tokens=False))
        return [self._document(document, [next(encoded).ids for _ in document.parts]) for document in documents]

    def _document(self, document: Document, parts: list[list[int]]) -> list[int]:
        ids = [self.end_of_text]
        if not document.roles:
            return ids + parts[0]
        for role, part in zip(document.roles, parts, strict=True):
            ids += [*self.opening(role), *part, *self.closing()]
        return ids

    def _control(self, token: str) -> int:
        number = self.tokenizer.token_to_id(token)
        if number is None:
            raise ConfigError(f"the tokenizer lacks the control token {token}")
        return number

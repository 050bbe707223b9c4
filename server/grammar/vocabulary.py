"""Our tokenizer as llguidance wants to see it."""

from __future__ import annotations

from llguidance import LLTokenizer, TokenizerWrapper

from mc_core.errors import ConfigError
from mc_core.models.tokenizer import Tokenizer


class _Words:
    """What llguidance's wrapper asks of a tokenizer. Control tokens stand for nothing that text could spell."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, ends: list[int]) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = ends[0]
        self.special_token_ids = sorted(tokenizer.control_ids | set(ends))
        self.tokens = [tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)]
        self.tokens += [b""] * (ends[-1] + 1 - len(self.tokens))

    def __call__(self, text: bytes | str) -> list[int]:
        plain = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        return self._tokenizer.encode_more(plain).tolist()


def vocabulary_of(tokenizer: Tokenizer) -> LLTokenizer:
    """Takes half a second for 50,000 tokens. ConfigError for a tokenizer whose tokens read differently in different
    places (word pieces), of which no text can be told before it is whole."""
    if not tokenizer.pieces.known:
        raise ConfigError("this model's tokenizer does not say what bytes its tokens are: no grammar can be kept")
    # Without an end token replies end where nothing more can follow; an id that is none stands for it.
    ends = sorted(tokenizer.eos_ids) or [tokenizer.vocab_size]
    words = TokenizerWrapper(_Words(tokenizer, ends))
    return LLTokenizer(words, n_vocab=len(words.tokens), eos_token=ends, slices=LLTokenizer.json_slices())

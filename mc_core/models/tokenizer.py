"""Text to token ids and back, with a wall between a template's control tokens and everybody else's text."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from numpy.typing import NDArray

from mc_core.errors import ConfigError
from mc_core.models.pieces import PieceBytes
from mc_core.models.tokenizer_files import TokenizerFiles, special_tokens
from mc_core.models.words import Words

Ids = NDArray[np.int32]
ENDS = re.compile(rb"[.!?\n]")
ASKS = re.compile(rb"(\?|\xd8\x9f|\xef\xbc\x9f)[\"')\]]*\s*$")
STOPS = re.compile(rb"[.!?][\"')\]]*\s*$|\n\s*\n")
SEAM = -1
"""Among the parts of a text: they are tokenized apart here, with nothing between them."""
_LEADS = ("\n", ".", "a")
"""Texts that others can be encoded behind; one of them does not melt into what follows."""


class ControlSpan(NamedTuple):
    """A control token in a text: characters [start, end), with the white space that the token takes in."""

    start: int
    end: int
    id: int


class Tokenizer:
    """A Hugging Face tokenizer, safe to share between threads; its ids lie in [0, vocab_size).

    ``encode`` is for text of users and documents: a text that looks like a control token is plain text, never the
    token. ``encode_control`` is for text that the server itself wrote from a template. Control tokens are all added
    tokens of tokenizer.json, whether it calls them special or not, except white space and single characters.
    """

    def __init__(
        self, spec: bytes, settings: Mapping[str, Any] | None = None, eos_ids: Sequence[int] = (), template: str = ""
    ) -> None:
        """spec: contents of tokenizer.json; settings: of tokenizer_config.json; template: the raw chat template."""
        self.fingerprint = hashlib.sha256(spec).hexdigest()
        self.chat_template = template or None
        parsed = _parse(spec)
        self._control, self._plain = _build(parsed), _build(_all_special(parsed))
        self._plain.encode_special_tokens = True
        self.vocab_size = max(self._control.get_vocab(with_added_tokens=True).values()) + 1
        self._seam, self._seam_id = _add_seam(self._plain, self.vocab_size)
        added = {int(token["id"]): token for token in parsed.get("added_tokens", [])}
        self.special_ids = frozenset(i for i, token in added.items() if token["special"])
        self._unknown = _unknown_id(parsed)
        self.control_ids = frozenset(i for i, token in added.items() if _is_control(token)) - {self._unknown}
        self._is_control = np.zeros(max(added, default=0) + 2, bool)  # the last place stands for all higher ids
        self._is_control[list(self.control_ids)] = True
        self._size = self._seam_id
        self.special_tokens = special_tokens(settings or {})
        end = self._control.token_to_id(self.special_tokens.get("eos_token", ""))
        self.eos_ids = frozenset(eos_ids) | (frozenset() if end is None else {end})
        # The unknown token is one only where its name stands: models give it for any character they do not know.
        named = [added[i] for i in sorted({*self.control_ids, self._unknown} & set(added))]
        self.control_texts = frozenset(str(token["content"]) for token in named)
        self._hint = _hint(named, parsed.get("normalizer"))
        self._adds_blank = not np.array_equal(self.encode("\na")[len(self.encode("\n")) :], self.encode("a"))
        self.pieces = PieceBytes(parsed.get("decoder"), self._control.id_to_token)

    @classmethod
    def load(cls, path: Path | str) -> Tokenizer:
        """From a Hugging Face folder: tokenizer.json, and what is there of its companions."""
        files = TokenizerFiles.read(Path(path))
        return cls(files.spec, files.settings, files.eos_ids, files.template)

    def fit(self, size: int) -> None:
        """For a model with ids below ``size``: text that needs a token above is refused (ConfigError) from now on.

        Added tokens may lie above, such as a padding token that no text names; ConfigError if the vocabulary does.
        """
        highest = max(self._control.get_vocab(with_added_tokens=False).values(), default=-1)
        if highest >= size:
            raise ConfigError(f"tokenizer.json has token ids up to {highest}, but vocab_size in config.json is {size}")
        self._size = size

    def encode(self, text: str) -> Ids:
        """Plain text -> ids [n]; never a control token, whatever the text says."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        """As ``encode``, for many texts at once, on as many threads as the machine gives the tokenizer."""
        clean = [without_surrogates(text) for text in texts]
        encodings = self._plain.encode_batch_fast(clean, add_special_tokens=False)
        all_ids = [self._fitting(encoding.ids) for encoding in encodings]
        # Some models (unigram, word level) hold control tokens in their vocabulary and may spell text with them.
        return [
            self.encode_parts([text]) if self._has_control(ids) else ids
            for text, ids in zip(clean, all_ids, strict=True)
        ]

    def encode_first(self, text: str) -> Ids:
        """As ``encode``, for text that begins a history: behind what the tokenizer puts before a raw text."""
        return np.concatenate([self.prefix_ids, self.encode(text)])

    def encode_more(self, text: str) -> Ids:
        """As ``encode``, for text that goes on where other text ends: no blank is put before it."""
        if not self._adds_blank:
            return self.encode(text)
        for lead in _LEADS:
            head, whole = self.encode_batch([lead, lead + text])
            if np.array_equal(whole[: len(head)], head):
                return whole[len(head) :]
        return self.encode_parts([SEAM, text])

    def encode_control(self, text: str) -> Ids:
        """Text of a template -> ids [n], control tokens recognised; nothing is added around it."""
        return self._fitting(_encoding(self._control, without_surrogates(text)).ids)

    def find_control(self, text: str) -> list[ControlSpan]:
        """The control tokens that ``encode_control`` finds in a text without surrogates, in order."""
        if self._hint is not None and self._hint.search(text) is None:
            return []
        encoding = _encoding(self._control, text, offsets=True)
        pairs = zip(encoding.ids, encoding.offsets, strict=True)
        return [
            ControlSpan(start, end, i)
            for i, (start, end) in pairs
            if i in self.control_ids or (i == self._unknown and text[start:end].strip() in self.control_texts)
        ]

    def encode_parts(self, parts: Sequence[str | int]) -> Ids:
        """Plain text around control tokens (given by id) -> ids [n], as of one text; ``SEAM`` parts text unseen.

        What stands in the text never becomes a control token; blanks are put at starts as the tokenizer does it.
        """
        text = "".join(self._seam if isinstance(part, int) else without_surrogates(part) for part in parts)
        encoding = _encoding(self._plain, text)
        ids = np.array(encoding.ids, np.int32)
        if self._has_control(ids):
            pieces = [piece for part in parts for piece in self._without_controls(part)]
            if pieces == list(parts):
                raise ConfigError("a text can only be encoded with a control token of this tokenizer")
            return self.encode_parts(pieces)
        ids[ids == self._seam_id] = [part for part in parts if isinstance(part, int)]
        return self._fitting(ids[ids != SEAM])

    def also_end_with(self, ids: Iterable[int]) -> None:
        """Further tokens that end a reply, such as the one that a chat template closes it with."""
        self.eos_ids |= frozenset(ids)

    @property
    def prefix_ids(self) -> Ids:
        """What the tokenizer puts before a raw text (a begin token for some families, nothing for most)."""
        encoding = self._control.encode("a", add_special_tokens=True)
        body = encoding.special_tokens_mask.index(0) if 0 in encoding.special_tokens_mask else 0
        return self._fitting(encoding.ids[:body])

    def decode(self, ids: Sequence[int] | Ids, skip_special_tokens: bool = True) -> str:
        """ids -> text; bytes that are no UTF-8 become U+FFFD."""
        return self._control.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens)

    def token_bytes(self, token: int) -> bytes:
        """The bytes that one token stands for, control tokens by their name; empty for an id without a token."""
        known = self.pieces.of(token)
        return self.decode([token], skip_special_tokens=False).encode() if known is None else known

    def words(self, size: int) -> Words:
        """How ids below ``size`` make words.

        fold: one id for all tokens whose text differs in case and outer space alone, -1 for control tokens, blank ones
        and ids without a token. ends: full stop, ! or ?, a line break, or a control token. stops: full stop, ! or ?
        with what closes behind it, or a blank line. asks: question mark, also of other scripts, likewise.
        """
        fold = np.full(size, -1, np.int32)
        ends, stops, digits, asks = (np.zeros(size, np.bool_) for _ in range(4))
        first = dict[bytes, int]()
        for token in range(min(size, self.vocab_size)):
            data, control = self.token_bytes(token), token in self.control_ids
            word = _word(data)
            if word and not control:
                fold[token] = first.setdefault(word, token)
            ends[token] = control or ENDS.search(data) is not None
            stops[token] = STOPS.search(data) is not None
            digits[token] = data.strip().isdigit()
            asks[token] = ASKS.search(data) is not None
        return Words(fold, ends, stops, digits, asks)

    def _fitting(self, ids: Sequence[int] | Ids) -> Ids:
        """The ids as an array; ConfigError for one that the model has not."""
        array = np.asarray(ids, np.int32)
        if array.size and (highest := int(array.max())) >= self._size:
            name = self._control.id_to_token(highest)
            raise ConfigError(f"the text holds the token {name!r}, which the model does not have")
        return array

    def _has_control(self, ids: Ids) -> bool:
        return bool(self._is_control[np.minimum(ids, len(self._is_control) - 1)].any())

    def _without_controls(self, part: str | int) -> list[str | int]:
        """A part with a seam at every place where its text would become a control token."""
        if isinstance(part, int):
            return [part]
        text = without_surrogates(part)
        encoding = self._plain.encode(self._seam + text, add_special_tokens=False)
        shift = len(self._seam)
        cuts = [
            start + 1 - shift
            for i, (start, _) in zip(encoding.ids, encoding.offsets, strict=True)
            if i in self.control_ids
        ]
        if any(cut >= len(text) for cut in cuts):
            raise ConfigError(f"the text {text[:40]!r} can only be encoded as a control token of this tokenizer")
        edges = sorted({0, *cuts, len(text)})
        pieces: list[str | int] = [SEAM]
        for a, b in itertools.pairwise(edges):
            pieces += [text[a:b], SEAM]
        return pieces[1:-1]


def _word(data: bytes) -> bytes:
    """Text without case and outer space; pieces of characters are no text and stay as they are."""
    try:
        return data.decode().strip().casefold().encode()
    except UnicodeDecodeError:
        return data


def _parse(spec: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(spec)
    except ValueError as error:
        raise ConfigError(f"tokenizer.json cannot be read as JSON: {error}") from error
    if not isinstance(parsed, dict) or "model" not in parsed:
        raise ConfigError("tokenizer.json must hold an object with a model")
    return parsed


def _build(parsed: Mapping[str, Any]) -> tokenizers.Tokenizer:
    try:
        built = tokenizers.Tokenizer.from_str(json.dumps(parsed, ensure_ascii=False))
    except Exception as error:  # the library raises plain Exception
        raise ConfigError(f"tokenizer.json cannot be used: {error}") from error
    # Some published tokenizers truncate or pad by default; a history must keep every token.
    built.no_truncation()
    built.no_padding()
    return built


def _is_control(token: Mapping[str, Any]) -> bool:
    return bool(token["special"]) or len(token["content"].strip()) > 1


def _all_special(parsed: Mapping[str, Any]) -> dict[str, Any]:
    """The same tokenizer with every control token marked special, so that the library can be told to overlook it."""
    added = [{**token, "special": _is_control(token)} for token in parsed.get("added_tokens", [])]
    return {**parsed, "added_tokens": added}


def _add_seam(built: tokenizers.Tokenizer, above: int) -> tuple[str, int]:
    """Give a tokenizer a token that no text can spell -> its text and its id, which is none of the vocabulary's."""
    while True:
        seam = f"\U0010fffd{secrets.token_hex(16)}"
        built.add_tokens([tokenizers.AddedToken(seam, normalized=False, special=False)])
        if (token := built.token_to_id(seam)) is not None and token >= above:
            return seam, token


def _hint(added: Sequence[Mapping[str, Any]], normalizer: Any) -> re.Pattern[str] | None:
    """A quick pattern that every text with a control token matches; None where a normalizer may make one."""
    if not added or (normalizer is not None and any(token.get("normalized", True) for token in added)):
        return None
    return re.compile("|".join(sorted({re.escape(token["content"][:2]) for token in added})))


def _unknown_id(parsed: Mapping[str, Any]) -> int:
    """The id that a model without byte fallback gives to characters it does not know; -1 if there is none."""
    model = parsed["model"]
    if isinstance(model.get("unk_id"), int):
        return int(model["unk_id"])
    vocab = model.get("vocab")
    return int(vocab.get(model.get("unk_token"), -1)) if isinstance(vocab, dict) else -1


def _encoding(of: tokenizers.Tokenizer, text: str, *, offsets: bool = False) -> tokenizers.Encoding:
    """As ``of.encode(text)``, but other threads run meanwhile: a batch lets the interpreter go, one text does not.

    offsets: wanted too.
    """
    encode = of.encode_batch if offsets else of.encode_batch_fast
    return encode([text], add_special_tokens=False)[0]


def without_surrogates(text: str) -> str:
    """JSON may carry half a surrogate pair, which is no character: U+FFFD takes its place."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")

"""Text to token ids and back, with a wall between a template's control tokens and everybody else's text."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from mc_core.errors import ConfigError
from mc_core.models.loading import read_json
from mc_core.models.pieces import PieceBytes
from mc_core.models.words import Words

Ids = NDArray[np.int32]
ENDS = re.compile(rb"[.!?\n]")


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
        added = {int(token["id"]): token for token in parsed.get("added_tokens", [])}
        self.special_ids = frozenset(i for i, token in added.items() if token["special"])
        self.control_ids = frozenset(i for i, token in added.items() if _is_control(token)) - {_unknown_id(parsed)}
        self._is_control = np.zeros(max(added, default=0) + 2, bool)  # the last place stands for all higher ids
        self._is_control[list(self.control_ids)] = True
        self.special_tokens = _special_tokens(settings or {})
        end = self._control.token_to_id(self.special_tokens.get("eos_token", ""))
        self.eos_ids = frozenset(eos_ids) | (frozenset() if end is None else {end})
        self.pieces = PieceBytes(parsed.get("decoder"), self._control.id_to_token)

    @classmethod
    def load(cls, path: Path | str) -> Tokenizer:
        """From a Hugging Face folder: tokenizer.json, and what is there of its companions."""
        folder = Path(path)
        try:
            spec = (folder / "tokenizer.json").read_bytes()
        except FileNotFoundError:
            raise ConfigError(f"tokenizer.json is missing in {folder}") from None
        settings = _optional(folder / "tokenizer_config.json")
        eos_ids = {
            token
            for name in ("generation_config.json", "config.json")
            for token in _id_list(_optional(folder / name).get("eos_token_id"), name)
        }
        return cls(spec, settings, sorted(eos_ids), _template(folder, settings))

    def encode(self, text: str) -> Ids:
        """Plain text -> ids [n]; never a control token, whatever the text says."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        """As ``encode``, for many texts at once, on as many threads as the machine gives the tokenizer."""
        clean = [_without_surrogates(text) for text in texts]
        encodings = self._plain.encode_batch_fast(clean, add_special_tokens=False)
        all_ids = [np.array(encoding.ids, np.int32) for encoding in encodings]
        # Some models (unigram, word level) hold control tokens in their vocabulary and may spell text with them.
        return [
            self._split_controls(text) if self._has_control(ids) else ids
            for text, ids in zip(clean, all_ids, strict=True)
        ]

    def encode_control(self, text: str) -> Ids:
        """Text of a template -> ids [n], control tokens recognised; nothing is added around it."""
        return np.array(self._control.encode(_without_surrogates(text), add_special_tokens=False).ids, np.int32)

    @property
    def prefix_ids(self) -> Ids:
        """What the tokenizer puts before a raw text (a begin token for some families, nothing for most)."""
        encoding = self._control.encode("a", add_special_tokens=True)
        body = encoding.special_tokens_mask.index(0) if 0 in encoding.special_tokens_mask else 0
        return np.array(encoding.ids[:body], np.int32)

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
        and ids without a token. ends: full stop, ! or ?, a line break, or a control token.
        """
        fold, ends, digits = np.full(size, -1, np.int32), np.zeros(size, np.bool_), np.zeros(size, np.bool_)
        first = dict[bytes, int]()
        for token in range(min(size, self.vocab_size)):
            data, control = self.token_bytes(token), token in self.control_ids
            word = _word(data)
            if word and not control:
                fold[token] = first.setdefault(word, token)
            ends[token] = control or ENDS.search(data) is not None
            digits[token] = data.strip().isdigit()
        return Words(fold, ends, digits)

    def _has_control(self, ids: Ids) -> bool:
        return bool(self._is_control[np.minimum(ids, len(self._is_control) - 1)].any())

    def _split_controls(self, text: str) -> Ids:
        """Encode a text apart at every place where it would become a control token."""
        encoding = self._plain.encode(text, add_special_tokens=False)
        cuts = [
            start + 1 for i, (start, _) in zip(encoding.ids, encoding.offsets, strict=True) if i in self.control_ids
        ]
        edges = sorted({0, *(cut for cut in cuts if cut < len(text)), len(text)})
        if len(edges) == 2:
            raise ConfigError(f"the text {text[:40]!r} can only be encoded as a control token of this tokenizer")
        parts = [text[a:b] for a, b in itertools.pairwise(edges)]
        return np.concatenate(self.encode_batch(parts))


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


def _unknown_id(parsed: Mapping[str, Any]) -> int:
    """The id that a model without byte fallback gives to characters it does not know; -1 if there is none."""
    model = parsed["model"]
    if isinstance(model.get("unk_id"), int):
        return int(model["unk_id"])
    vocab = model.get("vocab")
    return int(vocab.get(model.get("unk_token"), -1)) if isinstance(vocab, dict) else -1


def _special_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """bos_token, eos_token and their like, as templates name them."""
    named = {k: v for k, v in settings.items() if re.fullmatch(r"(bos|eos|pad|unk|sep|cls|mask)_token", k)}
    texts = {name: value.get("content") if isinstance(value, Mapping) else value for name, value in named.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _template(folder: Path, settings: Mapping[str, Any]) -> str:
    """chat_template.jinja, or the (default) template of tokenizer_config.json; "" if there is none."""
    file = folder / "chat_template.jinja"
    if file.exists():
        return file.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):
        template = {entry.get("name"): entry.get("template") for entry in template}.get("default")
    return template if isinstance(template, str) else ""


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _id_list(value: Any, name: str) -> list[int]:
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(token, int) and token >= 0 for token in ids):
        raise ConfigError(f"eos_token_id in {name} must be a token id or a list of them, got {value!r}")
    return ids


def _without_surrogates(text: str) -> str:
    """JSON may carry half a surrogate pair, which is no character: U+FFFD takes its place."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")

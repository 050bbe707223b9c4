"""The tokenizer of a GGUF file, written as a ``tokenizer.json``: the library that reads those does the rest.

Two kinds: ``gpt2``, a byte-level BPE whose pre-tokenizer has a name, and ``llama``, SentencePiece's BPE by scores with
bytes for what it does not know.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mc_core.errors import ConfigError
from mc_core.models.gguf_file import GgufFile
from mc_core.models.tokenizer import Tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Token types of GGUF files."""
BLANK = "▁"
_ENDS = ("eos", "eot", "eom")
_NAMED = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}

_SHORT = "'s|'t|'re|'ve|'m|'ll|'d"
_SHORT_ANY_CASE = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = rf"{_SHORT}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_LLAMA3 = rf"{_SHORT_ANY_CASE}|{_LETTERS}|\p{{N}}{{1,3}}|{_SIGNS}|{_REST}"
_QWEN2 = rf"{_SHORT_ANY_CASE}|{_LETTERS}|\p{{N}}|{_SIGNS}|{_REST}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_REST}"
)
_DIGITS = r"\p{N}"

PRE_TOKENIZERS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("gpt-2", "phi-2", "olmo", "mpt"), (_GPT2,)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"), (_DIGITS, _GPT2)),
    **dict.fromkeys(("qwen2", "stablelm2", "deepseek-r1-qwen"), (_QWEN2,)),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "dbrx", "smaug-bpe"), (_LLAMA3,)),
    "tekken": (_TEKKEN,),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
}
"""By ``tokenizer.ggml.pre``: what cuts a text into pieces, one pattern after the other. As llama.cpp has them."""
WHOLE_WORDS = ("llama-bpe", "llama3", "llama-v3", "falcon3", "tekken")
"""Those that take a piece which is a token for that token, whatever the merges say."""
BEGIN_BY_DEFAULT = ("llama-bpe", "llama3", "llama-v3", "falcon3", "tekken")


def load_tokenizer(file: GgufFile) -> Tokenizer:
    """The file's tokenizer, with its chat template and all of its end tokens; errors as ``tokenizer_json``."""
    return Tokenizer(tokenizer_json(file), tokenizer_settings(file), end_ids(file), chat_template(file))


def tokenizer_json(file: GgufFile) -> bytes:
    """The contents of a ``tokenizer.json``; ConfigError for a kind or a pre-tokenizer that is not known."""
    kind = file.value("tokenizer.ggml.model")
    tokens, types = file.value("tokenizer.ggml.tokens"), file.value("tokenizer.ggml.token_type", None)
    types = types or [NORMAL] * len(tokens)
    if len(types) != len(tokens):
        raise ConfigError(f"tokenizer.ggml.token_type has {len(types)} entries for {len(tokens)} tokens")
    match kind:
        case "gpt2":
            parts = _byte_level(file, tokens)
        case "llama":
            parts = _sentence_piece(file, tokens, types)
        case _:
            raise ConfigError(f"tokenizer.ggml.model must be gpt2 or llama, got {kind!r}")
    spec = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(tokens, types),
        "post_processor": _begin(file, tokens, kind),
        "normalizer": None,
        "pre_tokenizer": None,
        **parts,
    }
    return json.dumps(spec, ensure_ascii=False).encode()


def tokenizer_settings(file: GgufFile) -> dict[str, Any]:
    """What a ``tokenizer_config.json`` would say: the special tokens by name."""
    tokens = file.value("tokenizer.ggml.tokens")
    ids = {name: file.value(f"tokenizer.ggml.{key}_token_id", None) for key, name in _NAMED.items()}
    return {name: tokens[index] for name, index in ids.items() if index is not None and index < len(tokens)}


def end_ids(file: GgufFile) -> list[int]:
    """All tokens that the file says end a text, a turn or a message."""
    ids = (file.value(f"tokenizer.ggml.{name}_token_id", None) for name in _ENDS)
    return sorted({int(index) for index in ids if index is not None})


def chat_template(file: GgufFile) -> str:
    """The file's chat template, "" if it has none."""
    return str(file.value("tokenizer.chat_template", ""))


def _byte_level(file: GgufFile, tokens: Sequence[str]) -> dict[str, Any]:
    name = str(file.value("tokenizer.ggml.pre", "default"))
    if name not in PRE_TOKENIZERS:
        known = ", ".join(sorted(PRE_TOKENIZERS))
        raise ConfigError(f"tokenizer.ggml.pre is {name!r}, which is not known; those that are: {known}")
    splits = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in PRE_TOKENIZERS[name]
    ]
    pieces = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    merges = [merge.split(" ", 1) for merge in file.value("tokenizer.ggml.merges")]
    return {
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, pieces]},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": _bpe(tokens, merges, ignore_merges=name in WHOLE_WORDS),
    }


def _sentence_piece(file: GgufFile, tokens: Sequence[str], types: Sequence[int]) -> dict[str, Any]:
    scores = file.value("tokenizer.ggml.scores")
    unknown = file.value("tokenizer.ggml.unknown_token_id", 0)
    blanks = {"type": "Replace", "pattern": {"String": " "}, "content": BLANK}
    normalizers: list[dict[str, Any]] = [blanks]
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": BLANK}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if file.value("tokenizer.ggml.add_space_prefix", True):
        normalizers.insert(0, {"type": "Prepend", "prepend": BLANK})
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    pieces = [token for token, kind in zip(tokens, types, strict=True) if kind in (NORMAL, UNUSED)]
    score_of = dict(zip(tokens, scores, strict=True))
    return {
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": _bpe(
            tokens, _merges_by_score(pieces, score_of), unk_token=tokens[unknown], fuse_unk=True, byte_fallback=True
        ),
    }


def _merges_by_score(pieces: Sequence[str], score_of: Mapping[str, float]) -> list[list[str]]:
    """Merges in the order in which SentencePiece makes them: the pair whose whole has the best score first."""
    place = {piece: index for index, piece in enumerate(pieces)}
    found = [
        (-score_of[piece], place[piece[:cut]], place[piece[cut:]])
        for piece in pieces
        for cut in range(1, len(piece))
        if piece[:cut] in place and piece[cut:] in place
    ]
    return [[pieces[left], pieces[right]] for _, left, right in sorted(found)]


def _bpe(tokens: Sequence[str], merges: Sequence[Sequence[str]], **others: Any) -> dict[str, Any]:
    model: dict[str, Any] = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
    }
    vocab = {token: index for index, token in enumerate(tokens)}
    return {**model, **others, "vocab": vocab, "merges": merges}


def _added(tokens: Sequence[str], types: Sequence[int]) -> list[dict[str, Any]]:
    return [
        {
            "id": index,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind in (CONTROL, UNKNOWN),
        }
        for index, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (UNKNOWN, CONTROL, USER_DEFINED)
    ]


def _begin(file: GgufFile, tokens: Sequence[str], kind: str) -> dict[str, Any] | None:
    """What puts the begin token in front of a text, where the file wants that."""
    default = kind == "llama" or file.value("tokenizer.ggml.pre", "default") in BEGIN_BY_DEFAULT
    begin = file.value("tokenizer.ggml.bos_token_id", None)
    if begin is None or not file.value("tokenizer.ggml.add_bos_token", default):
        return None
    token = tokens[begin]
    text = {"Sequence": {"id": "A", "type_id": 0}}
    first = {"SpecialToken": {"id": token, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [first, text],
        "pair": [first, text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {token: {"id": token, "ids": [begin], "tokens": [token]}},
    }
